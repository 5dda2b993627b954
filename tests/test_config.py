"""Settings: to TOML and back, refused where wrong, explained everywhere."""

import dataclasses

import pytest

from moe_router.config import Config, field_help
from moe_router.errors import ConfigError

SECTIONS = dataclasses.fields(Config)
CHANGED = {
    "base": {"model": 'C:\\models\\"x"'},
    "data": {"prompt_field": "dúvida", "seed": 3},
    "experts": {"rslora": False, "learning_rate": 1e-4},
}


def test_round_trip(tmp_path):
    path = tmp_path / "moe-router.toml"
    for config in (Config(), Config().override(CHANGED)):
        path.write_text(config.to_toml(), encoding="utf-8")
        assert Config.load(path) == config
    assert Config.load(path) != Config()


def test_a_missing_file_gives_the_defaults(tmp_path):
    assert Config.load(tmp_path / "none.toml") == Config()


def test_override_leaves_the_original_and_the_rest():
    before = Config()
    after = before.override({"slice": {"k": 3}})
    assert (before.slice.k, after.slice.k) == (Config().slice.k, 3)
    assert dataclasses.replace(after, slice=before.slice) == before


def test_whole_numbers_serve_as_decimals():
    assert Config().override({"experts": {"epochs": 2}}).experts.epochs == 2.0


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"slice": {"kk": 3}}, r"unknown setting slice\.kk"),
        ({"slice": {"embedder": " "}}, r"slice\.embedder is empty"),
        ({"slices": {"k": 3}}, r"unknown section \[slices\]: use one of base, data"),
        ({"slice": 3}, r"unknown section \[slice\]"),
        ({"load": {}}, r"unknown section \[load\]"),
        ({"slice": {"k": "8"}}, r"slice\.k = '8': expected int"),
        ({"slice": {"k": True}}, r"slice\.k = True: expected int"),
        ({"slice": {"k": 8.0}}, r"slice\.k = 8\.0: expected int"),
        ({"experts": {"rslora": 1}}, r"experts\.rslora = 1: expected bool"),
        ({"experts": {"epochs": True}}, r"experts\.epochs = True: expected float"),
        ({"slice": {"k": -1}}, r"slice\.k = -1: at least 1"),
        ({"data": {"test_share": 0.9}}, "less than 20 % for training"),
        ({"data": {"test_share": 0.0}}, "between 0 and 1"),
        ({"data": {"limit": -1}}, r"data\.limit is negative"),
        ({"data": {"pii": "hide"}}, r"data\.pii = 'hide': use 'redact', 'drop' or 'keep'"),
        ({"data": {"near_duplicates": "x"}}, r"data\.near_duplicates = 'x'"),
        ({"data": {"max_chars": 0}}, r"data\.max_chars = 0: at least 1"),
        ({"base": {"quantization": "int3"}}, "use one of 'nf4', 'gptq', 'none'"),
        ({"generation": {"temperature": float("nan")}}, r"generation\.temperature"),
        ({"gate": {"mode": "best"}}, "use 'top1', 'top2', another number"),
    ],
)
def test_wrong_settings_are_refused_by_name(tables, message):
    with pytest.raises(ConfigError, match=message):
        Config().override(tables)


@pytest.mark.parametrize("data", [b"[slice]\nkk = 3", b"[slice\n", b"[slice]\nk = '\xff'"])
def test_errors_name_the_file(tmp_path, data):
    path = tmp_path / "moe-router.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"moe-router\.toml: "):
        Config.load(path)


@pytest.mark.parametrize("section", [section.name for section in SECTIONS])
def test_every_setting_has_its_help(section):
    kind = type(getattr(Config(), section))
    texts = field_help(kind)
    assert list(texts) == [setting.name for setting in dataclasses.fields(kind)]
    assert all(text.endswith(".") and "\n" not in text for text in texts.values())
    assert kind.__doc__ and not kind.__doc__.startswith(kind.__name__)


def test_toml_explains_every_setting():
    lines = Config().to_toml().splitlines()
    settings = [number for number, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(settings) == sum(len(dataclasses.fields(type(getattr(Config(), section.name)))) for section in SECTIONS)
    assert all(lines[number - 1].startswith("# ") for number in settings)


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().slice.k = 3
