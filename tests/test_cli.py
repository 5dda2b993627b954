"""The command line: help, exit codes, stdout and stderr apart, settings, failures on one line."""

import errno
import json
import shlex
import sys

import click
import pytest
from click.testing import CliRunner

from moe_router.cli import main
from moe_router.cli.common import command, explain, register
from moe_router.cli.settings import flag_of, overrides, settings_of
from moe_router.config import BaseConfig, Config, field_help
from moe_router.errors import ConfigError, InputError
from moe_router.workspace import write_json


def run(*args):
    return CliRunner().invoke(main, [str(a) for a in args], prog_name="moe-router")


def all_commands(group=main, path=()):
    for name, found in group.commands.items():
        yield (*path, name), found
        if isinstance(found, click.Group):
            yield from all_commands(found, (*path, name))


COMMANDS = dict(all_commands())


def with_body(body, *sections):
    """A command of our kind around `body`."""
    return register(command(*sections, example="moe-router probe")(body), "probe")


@pytest.fixture
def library(tmp_path):
    from moe_router.experts.library import Library

    def card(name, records):
        return {"name": name, "rank": 8, "records": records, "tokens": 1200, "losses": [3.0] * 20, "sha256": name}

    cards = {name: card(name, 40) for name in ("shared", "devoluções", "orders")}
    made = Library(
        path=tmp_path / "experts",
        names=("devoluções", "orders"),
        has_shared=True,
        base=BaseConfig(),
        base_digest="0",
        template="plain",
        max_tokens=64,
        inputs="",
        cards=cards,
    )
    for name, content in cards.items():
        write_json(made.path / name / "expert.json", content)
    made.save_index()
    return made


def test_the_commands_are_the_documented_ones():
    named = "init demo prepare slice slices synthesize train-experts train-gate route ask chat report eval card blind build "
    assert set(main.commands) == {*named.split(), "experts", "gates", "doctor"}
    members = "list show verify add remove rename export import"
    assert set(main.commands["experts"].commands) == set(members.split())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_a_working_example_and_explains_every_option(path):
    shown = run(*path, "--help")
    assert shown.exit_code == 0
    assert shown.stderr == ""
    example = shown.stdout.rsplit("Example:\n  ", 1)[1].strip()
    words = shlex.split(example)
    assert words[: len(path) + 1] == ["moe-router", *path]
    made = COMMANDS[path]
    if not isinstance(made, click.Group):
        made.make_context(path[-1], words[len(path) + 1 :])  # raises when the example does not parse
        assert {"--workspace", "--json", "--quiet"} <= {o for p in made.params for o in p.opts}
    assert all(p.help for p in made.params if isinstance(p, click.Option))


@pytest.mark.parametrize(
    "args", [["--nope"], ["nope"], ["slice", "--nope"], ["slice", "--k", "many"], ["prepare"], ["route"], ["ask"]], ids=" ".join
)
def test_wrong_usage_exits_2(args):
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


@pytest.mark.parametrize("args", [["experts", "list"], ["experts", "show", "x"], ["route", "hello"]], ids=" ".join)
def test_without_a_library_one_line_names_the_remedy(args):
    result = run(*args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "moe-router train-experts" in result.stderr


def test_a_missing_source_is_one_line(tmp_path):
    result = run("prepare", "nowhere.csv", "--workspace", tmp_path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "nowhere.csv" in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_init_writes_the_defaults_and_keeps_what_is_there(tmp_path):
    first = run("init", "--json")
    written = json.loads(first.stdout)["written"]
    assert written[:2] == [str(tmp_path / "moe-router.toml"), str(tmp_path / "experts/recipes/default.toml")]
    assert json.loads(first.stdout)["kept"] == []
    assert Config.load(tmp_path / "moe-router.toml") == Config()
    assert Config.load(tmp_path / "experts/recipes/default.toml") == Config()
    assert "[experts]" in (tmp_path / "experts/recipes/default.toml").read_text()
    assert "[gate]" not in (tmp_path / "experts/recipes/default.toml").read_text()

    (tmp_path / "moe-router.toml").write_text("[slice]\nk = 5\n")
    second = run("init")
    assert (second.exit_code, second.stdout) == (0, "")
    assert "moe-router.toml" in second.stderr
    assert Config.load(tmp_path / "moe-router.toml").slice.k == 5

    assert run("init", "--force", "-q").stderr == ""
    assert Config.load(tmp_path / "moe-router.toml") == Config()


def test_flags_override_the_file_which_overrides_the_defaults(tmp_path):
    (tmp_path / "moe-router.toml").write_text("[slice]\nk = 5\nmax_ratio = 2\n")
    seen = []
    probe = with_body(lambda session: seen.append(session.config), "slice", "experts")
    result = CliRunner().invoke(probe, ["--max-ratio", "3", "--no-rslora", "--seed", "7"])
    assert result.exit_code == 0
    config = seen[0]
    assert (config.slice.k, config.slice.max_ratio, config.slice.min_records) == (5, 3.0, 20)
    assert config.experts.rslora is False
    assert (config.slice.seed, config.experts.seed, config.gate.seed) == (7, 7, 0)


def test_the_workspace_flag_beats_the_variable(tmp_path, monkeypatch):
    seen = []
    probe = with_body(lambda session: seen.append(session.workspace.root))
    CliRunner().invoke(probe, [])
    monkeypatch.setenv("MOE_ROUTER_HOME", str(tmp_path / "variable"))
    CliRunner().invoke(probe, [])
    CliRunner().invoke(probe, ["--workspace", "flag"])
    assert seen == [tmp_path, tmp_path / "variable", tmp_path / "flag"]


@pytest.mark.parametrize("text", ["[slice]\nk = -1\n", "[slice]\nkk = 2\n", "[nope]\nk = 2\n", "not toml"])
def test_a_bad_settings_file_is_named(tmp_path, text):
    (tmp_path / "moe-router.toml").write_text(text)
    result = run("slice")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "moe-router.toml" in result.stderr


def test_every_setting_has_one_flag_with_its_help():
    sections = ("base", "data", "slice", "experts", "gate", "generation", "report")
    settings = settings_of(sections)
    flags = [s.flag for s in settings]
    assert len(flags) == len(set(flags))
    covered = {target for s in settings for target in s.targets}
    assert covered == {(s, key) for s in sections for key in field_help(type(getattr(Config(), s)))}
    rank = next(s for s in settings if s.flag == "--rank")
    assert rank.help == f"{field_help(type(Config().experts))['rank']} [default: {Config().experts.rank}]"


def test_flags_have_the_same_name_everywhere():
    assert flag_of("base", "model") == "--base"
    assert flag_of("experts", "learning_rate") == "--learning-rate"
    assert flag_of("gate", "mode") == "--gate-mode"
    assert [s.flag for s in settings_of(["data.template"])] == ["--template"]


def test_zero_and_false_are_values():
    settings = settings_of(["generation", "experts"])
    values = {s.name: None for s in settings} | {"generation__temperature": 0.0, "experts__rslora": False}
    assert overrides(settings, values) == {"generation": {"temperature": 0.0}, "experts": {"rslora": False}}


def test_stdout_carries_the_answer_alone():
    def body(session):
        with session.working() as progress:
            progress.stage("reading", 2)
            sys.stdout.write("a library prints this\n")
            progress.advance(2)
            progress.note("column guessed")
        session.answer({"café": [1, 2]}, ["for people"])

    machine = CliRunner().invoke(with_body(body), ["--json"])
    assert json.loads(machine.stdout) == {"café": [1, 2]}
    assert all(text in machine.stderr for text in ("reading", "a library prints this", "column guessed"))
    assert CliRunner().invoke(with_body(body), []).stdout == "for people\n"
    quiet = CliRunner().invoke(with_body(body), ["-q"])
    assert quiet.stdout == "for people\n"
    assert quiet.stderr == "a library prints this\n"


def fail(error):
    def body(session):
        raise error

    return CliRunner().invoke(with_body(body), [])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("a.csv: line 3\nis broken"), "a.csv: line 3 is broken"),
        (ConfigError("k = 0"), "k = 0"),
        (KeyboardInterrupt(), "interrupted: the same command resumes"),
        (PermissionError(errno.EACCES, "Permission denied", "/some/file"), "/some/file"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk full"),
        (MemoryError(), "out of memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_user_can_act_on_is_one_line(error, words):
    result = fail(error)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_a_bug_keeps_its_traceback():
    result = fail(RuntimeError("a bug"))
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_disk_that_is_really_full(tmp_path):
    def body(session):
        with open("/dev/full", "w") as file:  # noqa: PTH123 - a device, opened plainly
            file.write("x")

    result = CliRunner().invoke(with_body(body), [])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: disk full: free space under {tmp_path} and run the same command again; nothing half-written\n"
    )


def test_the_full_disk_of_a_library_in_rust_is_recognised(tmp_path):
    error = RuntimeError("I/O error: No space left on device (os error 28)")
    assert "disk full" in explain(error, lambda: tmp_path)


def test_experts_list_and_show(library):
    listed = run("experts", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["shared", "devoluções", "orders"]
    document = json.loads(run("experts", "list", "--json").stdout)
    assert [card["name"] for card in document["experts"]] == ["shared", "devoluções", "orders"]
    shown = run("experts", "show", "devoluções")
    assert "rank: 8" in shown.stdout
    assert "(20 in all)" in shown.stdout
    assert json.loads(run("experts", "show", "orders", "--json").stdout)["losses"] == [3.0] * 20


def test_experts_remove(library):
    result = run("experts", "remove", "orders", "--json")
    assert json.loads(result.stdout) == {"removed": "orders", "experts": ["devoluções"]}
    assert "train-gate" in result.stderr
    assert not (library.path / "orders").exists()
    assert "devoluções" in run("experts", "list").stdout


@pytest.mark.parametrize("verb", ["show", "remove"])
def test_an_unknown_expert_is_answered_with_the_known_ones(library, verb):
    result = run("experts", verb, "nobody")
    assert result.exit_code == 1
    assert "'nobody'" in result.stderr
    assert "devoluções" in result.stderr


def test_experts_verify_fails_on_a_damaged_library(library):
    result = run("experts", "verify", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert document["checks"][0]["name"] == "shared"
    assert "train-experts" in result.stderr.splitlines()[-1]


def test_doctor_answers_with_one_document():
    document = json.loads(run("doctor", "--json", "--k", "3", "--rank", "4", "--shared-rank", "2").stdout)
    assert document["load"]["total_rank"] == 3 * 4 + 2
    assert document["embedded_base"]["parameters"] == 17_283_584
