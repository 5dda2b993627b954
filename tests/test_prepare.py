"""The prepare stage: from files to files, whole or not at all, and not twice."""

import errno
import json

import pytest

from moe_router.config import Config
from moe_router.data import prepare as stage
from moe_router.data.prepare import Prepared, prepare
from moe_router.data.records import SPLITS, load_records
from moe_router.errors import InputError, WorkspaceError
from moe_router.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def exports(tmp_path):
    """A chat log and a table, with a duplicate across them, an unanswered turn and an empty answer."""
    folder = tmp_path / "exports"
    folder.mkdir()
    chat = [f"User: Pergunta {n}?\nAssistant: Resposta {n}.\n" for n in range(60)]
    (folder / "chat.txt").write_text("\n".join([*chat, "User: alô?\n"]), encoding="utf-8")
    table = ["question,answer,department", *(f"Question {n}?,Answer {n}.,HR" for n in range(60)), "Empty?,,HR"]
    (folder / "tickets.csv").write_text("\n".join([*table, "pergunta 5?,RESPOSTA 5.,HR"]), encoding="utf-8")
    return folder


def settings(**data):
    return Config().override({"data": data})


def test_everything_is_accounted_for(workspace, exports):
    prepared = prepare(workspace, [exports], Config())
    assert prepared.fresh
    assert (prepared.records, prepared.rejected, prepared.unused) == (120, 3, 0)
    assert prepared.reasons == {"duplicate": 1, "empty_response": 1, "unpaired_turn": 1}
    assert sum(source["items"] for source in prepared.sources) == 123
    records = load_records(workspace.records)
    assert len(records) == 120
    assert prepared.splits == {split: sum(r.split == split for r in records) for split in SPLITS}
    assert all(prepared.splits.values())
    assert records[0].source.endswith("chat.txt:1")
    assert records[-1].meta == {"department": "HR"}
    assert any("prompt from 'question'" in note for note in prepared.notes)


def test_rejections_say_where_and_why(workspace, exports):
    prepare(workspace, [exports], Config())
    lines = [json.loads(line) for line in workspace.rejected.read_text(encoding="utf-8").splitlines()]
    assert [set(line) for line in lines] == [{"file", "line", "rule", "reason", "text"}] * 3
    duplicate = next(line for line in lines if line["rule"] == "duplicate")
    assert duplicate["line"] == 63
    assert duplicate["text"] == "pergunta 5?\nRESPOSTA 5."
    assert duplicate["reason"].endswith("chat.txt:16")


def test_equal_input_is_not_prepared_again(workspace, exports):
    first = prepare(workspace, [exports], Config())
    before = workspace.records.stat().st_mtime_ns
    again = prepare(workspace, [exports], Config().override({"data": {"template": "other"}, "slice": {"k": 3}}))
    assert not again.fresh
    assert workspace.records.stat().st_mtime_ns == before
    assert again == Prepared.load(workspace)
    assert again.digest == first.digest


@pytest.mark.parametrize("change", ["source", "seed", "records", "rejected", "prepared"])
def test_changed_input_or_damaged_output_is_prepared_again(workspace, exports, change):
    first = prepare(workspace, [exports], Config())
    if change == "source":
        with (exports / "tickets.csv").open("a") as file:
            file.write("\nNew?,Yes.,IT")
    elif change == "records":
        workspace.records.write_bytes(workspace.records.read_bytes()[:-1])
    elif change == "rejected":
        workspace.rejected.unlink()
    elif change == "prepared":
        workspace.prepared.write_text("{")
    again = prepare(workspace, [exports], settings(seed=1) if change == "seed" else Config())
    assert again.fresh
    assert (again.digest == first.digest) is (change not in ("source", "seed"))


def test_the_digest_knows_content_not_place(workspace, exports, tmp_path):
    first = prepare(workspace, [exports], Config())
    moved = exports.rename(tmp_path / "elsewhere")
    again = prepare(workspace, [moved], Config())
    assert again.fresh
    assert again.digest == first.digest


def test_a_source_in_the_workspace_is_named_from_there(tmp_path, exports):
    prepare(Workspace(tmp_path), [exports], Config())
    assert load_records(tmp_path / "data" / "records.parquet")[0].source == "exports/chat.txt:1"


def test_the_stage_does_not_read_its_own_output(exports):
    workspace = Workspace(exports)
    workspace.data.mkdir()
    for path in list(exports.glob("*.*")):
        path.rename(workspace.data / path.name)
    first = prepare(workspace, [workspace.data], Config())
    assert not prepare(workspace, [workspace.data], Config()).fresh
    assert [source["file"] for source in first.sources] == ["data/chat.txt", "data/tickets.csv"]


def test_limit_counts_what_it_leaves_out(workspace, exports):
    prepared = prepare(workspace, [exports], settings(limit=50))
    assert (prepared.records, prepared.unused, prepared.rejected) == (50, 70, 3)
    assert sum(source["records"] for source in prepared.sources) == 50


def test_a_large_group_is_noted(workspace, tmp_path):
    rows = [{"prompt": "Hello!" if n < 30 else f"q {n}", "response": f"r {n}"} for n in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare(workspace, [tmp_path / "a.jsonl"], Config())
    assert any(note.startswith("30 records hang together") for note in prepared.notes)


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        (
            "prompt,response\n" + "".join(f"q{n},r\n" for n in range(39)) + ",r\n",
            {},
            r"only 39 of 40 records are left \(rejected: 1 empty_prompt; first .*t\.csv, line 41: .*\), 40 are needed",
        ),
        (
            "prompt,response,conversation_id\n" + "".join(f"q{n},r,7\n" for n in range(60)),
            {},
            "no records for gate, tune, test",
        ),
        ("prompt,response,split\n" + "".join(f"q{n},r,test\n" for n in range(60)), {}, "no records for train, gate, tune"),
        (
            "prompt,response\n" + "".join(f"q{n},r\n" for n in range(60)),
            {"prompt_field": "Promt"},
            "no source has a field 'Promt'",
        ),
    ],
)
def test_errors_come_before_anything_is_written(workspace, tmp_path, text, data, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        prepare(workspace, [tmp_path / "t.csv"], settings(**data))
    assert not workspace.root.exists()


@pytest.mark.parametrize("writer", ["save_records", "write_json"])
def test_a_full_disk_leaves_the_earlier_result_whole(workspace, exports, monkeypatch, writer):
    first = prepare(workspace, [exports], Config())
    before = {path: path.read_bytes() for path in workspace.data.iterdir()}

    def full(path, *content):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space left"):
        disk.setattr(stage, writer, full)
        prepare(workspace, [exports], settings(seed=1))
    assert {path: path.read_bytes() for path in workspace.data.iterdir()} == before
    again = prepare(workspace, [exports], Config())
    assert (again.digest, again.fresh) == (first.digest, False)


def test_nothing_to_load_names_the_command(workspace):
    with pytest.raises(WorkspaceError, match="run `moe-router prepare` first"):
        Prepared.load(workspace)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_damaged_summary_is_named(workspace, text):
    workspace.data.mkdir(parents=True)
    workspace.prepared.write_text(text)
    with pytest.raises(WorkspaceError, match=r"prepared\.json is damaged"):
        Prepared.load(workspace)
