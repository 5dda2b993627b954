"""Every reader against anything: no crash, no hang, and each item is a record or a rejection with its line."""

import gzip
import json
import zipfile

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
FUZZ = settings(max_examples=25, deadline=2000, suppress_health_check=[HealthCheck.too_slow])


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
