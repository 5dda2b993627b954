"""Every reader against anything: no crash, no hang, and each item is a record or a rejection with its line."""

import gzip
import json
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intake import accounted, write

from moe_router.config import Config, DataConfig
from moe_router.data.clean import clean
from moe_router.data.prepare import Prepared, prepare
from moe_router.data.readers import READERS, expand
from moe_router.errors import InputError
from moe_router.workspace import Workspace

BYTES = st.binary(max_size=120)
MARKED = (b"User: a", b"Assistant: b", b"### Comment: x ### REPLY: y ### END.", b"### Human:", b"# h", b"<h1>t</h1>", b"<p>x")
TABLED = (b"prompt,response", b'"', b'{"prompt":', b'"a"', b"}", b"[", b"]", b",", b"\t")
BROKEN = (b"\n", b"\r\n", b"\n\n", b"\xff\xfe", b"\xc3")
PIECES = st.lists(st.sampled_from([*MARKED, *TABLED, *BROKEN]) | st.binary(max_size=6), max_size=14).map(b"".join)
FUZZ = settings(max_examples=25, deadline=10_000, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("suffix", sorted(READERS))
@FUZZ
@given(content=BYTES | PIECES)
def test_any_bytes_are_accounted_for(tmp_path_factory, suffix, content):
    accounted(write(tmp_path_factory.getbasetemp() / f"any{suffix}", content))


@FUZZ
@given(content=PIECES, cut=st.integers(0, 60), suffix=st.sampled_from([".txt", ".jsonl", ".csv", ".md"]))
def test_packed_files_whole_or_damaged(tmp_path_factory, content, cut, suffix):
    folder = tmp_path_factory.getbasetemp()
    packed = gzip.compress(content)
    write(folder / f"f{suffix}.gz", packed[: len(packed) - cut] if cut > 30 else packed)
    with zipfile.ZipFile(folder / "f.zip", "w") as archive:
        archive.writestr(f"inner{suffix}", content)
    data = (folder / "f.zip").read_bytes()
    write(folder / "f.zip", data[: len(data) - cut] if cut > 30 else data)
    for name in (f"f{suffix}.gz", "f.zip"):
        try:
            items = [item for source in expand([folder / name], DataConfig()) for item in source]
        except InputError as error:
            assert "\n" not in str(error)
            continue
        cleaned = clean(items)
        assert len(cleaned.records) + len(cleaned.rejected) == len(items)


SAID = st.sampled_from(["", "yes", "14 dias", "30 dias", "N/A", "ana@exemplo.pt", "As an AI language model, I cannot.", "é"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": SAID | st.text(max_size=8), "response": SAID | st.text(max_size=8)},
        optional={"split": st.sampled_from(["train", "test", "validation"]), "synthetic": st.sampled_from(["m", "no"])},
    ),
    max_size=25,
)


@settings(FUZZ, max_examples=12)
@given(rows=ROWS, limit=st.sampled_from([0, 50]))
def test_the_whole_stage_accounts_for_every_row(tmp_path_factory, rows, limit):
    folder = tmp_path_factory.mktemp("stage")
    plain = [{"prompt": f"pergunta número {n} sobre a conta?", "response": f"resposta {n}"} for n in range(60)]
    write(folder / "rows.jsonl", "\n".join(map(json.dumps, [*plain, *rows])))
    workspace = Workspace(folder / "workspace")
    made = prepare(workspace, [folder / "rows.jsonl"], Config().override({"data": {"limit": limit}}))
    assert made.records + made.unused + made.rejected == 60 + len(rows)
    assert made.rejected == workspace.rejected.read_bytes().count(b"\n") == sum(made.reasons.values())
    assert Prepared.load(workspace).sources[0]["items"] == 60 + len(rows)


TEXT = st.none() | SAID | st.text(max_size=8)
SPOKEN = st.lists(st.fixed_dictionaries({"role": SAID | st.sampled_from(["user", "assistant"]), "content": TEXT}), max_size=4)
COLUMNS = st.sampled_from([("prompt", "response"), ("instruction", "output"), ("text",), ("messages",), ("conversations",)])


@st.composite
def tables(draw):
    """Columns of rows, each of one type, as Parquet and `datasets` have them."""
    names, count = draw(COLUMNS), draw(st.integers(1, 6))
    kind = SPOKEN if names[0] in ("messages", "conversations") else TEXT
    return {name: draw(st.lists(kind, min_size=count, max_size=count)) for name in names}


def written(columns):
    types = {name: pa.string() for name in ("prompt", "response", "instruction", "output", "text")}
    spoken = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.table({name: pa.array(values, types.get(name, spoken)) for name, values in columns.items()})


@FUZZ
@given(columns=tables())
def test_any_rows_of_parquet_are_accounted_for(tmp_path_factory, columns):
    path = tmp_path_factory.getbasetemp() / "rows.parquet"
    pq.write_table(written(columns), path)
    items = accounted(path)
    assert not items or {item.line for item in items} == set(range(1, len(next(iter(columns.values()))) + 1))


@settings(FUZZ, max_examples=10)
@given(columns=tables())
def test_any_rows_of_a_dataset_are_accounted_for(tmp_path_factory, columns):
    folder = tmp_path_factory.mktemp("saved")
    datasets.Dataset(written(columns)).save_to_disk(folder)
    try:
        items = [item for source in expand([folder], DataConfig()) for item in source]
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert {item.line for item in items} == set(range(1, len(next(iter(columns.values()))) + 1))
    cleaned = clean(items)
    assert len(cleaned.records) + len(cleaned.rejected) == len(items)


@pytest.mark.parametrize("suffix", sorted(READERS))
@settings(FUZZ, max_examples=8)
@given(content=PIECES)
def test_packing_changes_no_item(tmp_path_factory, suffix, content):
    folder = tmp_path_factory.mktemp("packed")
    write(folder / f"plain{suffix}", content)
    write(folder / f"plain{suffix}.gz", gzip.compress(content))
    with zipfile.ZipFile(folder / "plain.zip", "w") as archive:
        archive.writestr(f"plain{suffix}", content)
    read = []
    for name in (f"plain{suffix}", f"plain{suffix}.gz", "plain.zip"):
        try:
            items = [item for source in expand([folder / name], DataConfig()) for item in source]
        except InputError:
            items = []
        read.append([(item.line, item.prompt, item.response, item.rule) for item in items])
    assert read[0] == read[1] == read[2]
