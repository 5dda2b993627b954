"""Recipes: the package's, a workspace's own, and what `init` copies."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from moe_router.cli import main
from moe_router.config import Config
from moe_router.doctor import GIB, load_of
from moe_router.errors import ConfigError
from moe_router.experts.recipe import names, recipe, text
from moe_router.memory import LLAMA, training

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", names())
def test_the_repositorys_copies_are_the_packages(name):
    assert (ROOT / "experts" / "recipes" / f"{name}.toml").read_text(encoding="utf-8") == text(name)


def test_the_named_machines_have_recipes():
    assert set(names()) == {"default", "cpu", "colab-t4-16gb", "consumer-12gb", "consumer-24gb", "h100"}
    assert names()[0] == "default"
    assert recipe("default") == Config()


@pytest.mark.parametrize(
    ("name", "size", "limit"),
    [("colab-t4-16gb", 0, 15), ("consumer-12gb", 0, 12), ("consumer-24gb", 1, 24), ("h100", 0, 80)],
)
def test_a_recipe_is_estimated_to_fit_its_machine(name, size, limit):
    assert training(LLAMA[size], load_of(recipe(name))).total < limit * GIB


def test_a_workspaces_own_recipe_comes_first(tmp_path):
    (tmp_path / "cpu.toml").write_text("[experts]\nrank = 5\n")
    (tmp_path / "mine.toml").write_text("[experts]\nrank = 7\n")
    assert recipe("cpu", tmp_path).experts.rank == 5
    assert recipe("mine", tmp_path).experts.rank == 7
    assert recipe("h100", tmp_path).experts.rank == 16
    start = Config().override({"slice": {"k": 3}})
    assert recipe("mine", tmp_path, start).slice.k == 3


def test_a_wrong_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'laptop': use one of .*h100"):
        recipe("laptop", tmp_path)
    (tmp_path / "mine.toml").write_text("[experts]\nrnak = 7\n")
    with pytest.raises(ConfigError, match=r"mine\.toml.*rnak"):
        recipe("mine", tmp_path)


def test_init_copies_every_recipe_and_can_start_from_one(tmp_path):
    result = CliRunner().invoke(main, ["init", "--workspace", str(tmp_path), "--recipe", "consumer-12gb"])
    assert result.exit_code == 0, result.output
    assert {path.stem for path in (tmp_path / "experts" / "recipes").glob("*.toml")} == set(names())
    assert Config.load(tmp_path / "moe-router.toml") == recipe("consumer-12gb")


def test_flags_come_after_the_recipe_and_both_before_the_file(tmp_path):
    """`doctor` shows what the settings ask for."""
    import json

    (tmp_path / "moe-router.toml").write_text("[experts]\nshared_rank = 4\nrank = 3\n[slice]\nk = 2\n")
    arguments = ["doctor", "--json", "--workspace", str(tmp_path), "--recipe", "h100", "--rank", "2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    load = json.loads(result.stdout)["load"]
    assert load["total_rank"] == 2 * 2 + 16
    assert load["optimizer"] == "adamw"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replay": 1.5}, "from 0 to 1"),
        ({"start": "pissa"}, "eva"),
        ({"patience": 2}, "evaluate_every"),
        ({"optimizer": "sgd"}, "paged_adamw_8bit"),
        ({"schedule": "wave"}, "cosine"),
        ({"targets": " "}, "q_proj"),
        ({"micro_tokens": -1}, "at least 0"),
    ],
)
def test_conflicting_settings_cannot_be_built(changes, words):
    with pytest.raises(ConfigError, match=words):
        Config().override({"experts": changes})
