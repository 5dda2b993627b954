"""`slices` and `synthesize` on the command line, on a small prepared workspace."""

import json

import pytest
from click.testing import CliRunner
from models import tiny_llama

from moe_router.cli import main
from moe_router.cli.data import _synthesis_notes
from moe_router.config import Config
from moe_router.data.prepare import prepare
from moe_router.data.synthesize import Synthesis
from moe_router.workspace import Workspace

SUBJECTS = ("tapete", "salário", "computador")
WORDINGS = ("Quem trata do {} número {}?", "Preciso de ajuda com o {} da sala {}.", "Quanto tempo demora o {} do piso {}?")


def run(workspace, *arguments):
    done = CliRunner().invoke(main, [*arguments, "--workspace", str(workspace.root)], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A workspace that was prepared and sliced by department, not to be written to."""
    root = tmp_path_factory.mktemp("company")
    rows = [
        {
            "prompt": WORDINGS[n % 3].format(SUBJECTS[n // 3 % 3], n),
            "response": f"Ver a página {n}.",
            "department": SUBJECTS[n // 3 % 3],
        }
        for n in range(180)
    ]
    (root / "export.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    workspace = Workspace(root / "w")
    prepare(workspace, [root / "export.jsonl"], Config())
    assert run(workspace, "slice", "--by", "department", "--min-records", "10", "-q")[0] == 0
    return workspace


@pytest.fixture
def workspace(template, tmp_path):
    for path in (path for room in ("data", "reports") for path in (template.root / room).iterdir()):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    return Workspace(tmp_path)


def names(workspace):
    return [one["name"] for one in json.loads(run(workspace, "slices", "list", "--json")[1])["slices"]]


def test_list_merge_rename_and_split(workspace):
    assert names(workspace) == ["computador", "salario", "tapete"]
    assert run(workspace, "slices", "merge", "computador", "salario", "--name", "interno")[0] == 0
    assert names(workspace) == ["interno", "tapete"]
    code, out, _ = run(workspace, "slices", "rename", "tapete", "loja")
    assert (code, "loja: " in out) == (0, True)
    code, out, _ = run(workspace, "slices", "split", "interno", "--into", "2", "--min-records", "5")
    assert code == 0
    assert len(names(workspace)) == 3
    code, out, err = run(workspace, "slices", "rename", "nobody", "x")
    assert (code, out) == (1, "")
    assert "no slice is called 'nobody'" in err
    assert run(workspace, "slices", "rename", "loja")[0] == 2


def test_drift_is_told(workspace):
    code, out, _ = run(workspace, "slices", "drift", "--json")
    told = json.loads(out)
    assert (code, told["new"], told["high"]) == (0, 0, False)
    assert set(told["moved"]) == {"computador", "salario", "tapete"}
    assert run(workspace, "slices", "drift")[1].startswith("0 training records came after")


def test_the_data_report_shows_the_slices_and_follows_their_names(workspace):
    page = workspace.data_report
    assert "salario" in page.read_text(encoding="utf-8")
    run(workspace, "slices", "rename", "salario", "vencimentos")
    text = page.read_text(encoding="utf-8")
    assert 'role="img"' in text and "vencimentos" in text and "salario</td>" not in text
    assert "http" not in text and "<script" not in text
    assert "vencimentos" in page.with_suffix(".md").read_text(encoding="utf-8")


def test_k_is_a_number_or_auto(workspace):
    code, _, err = run(workspace, "slice", "--k", "many")
    assert code == 2
    assert "'many' is not a valid integer" in err
    code, _, err = run(workspace, "slice", "--k", "auto", "--min-records", "1000")
    assert code == 1
    assert "fewer than slice.min_records = 1000" in err


def test_synthesize_writes_marks_and_warns(workspace, tmp_path):
    (tmp_path / "facts.txt").write_text("O tapete custa 90 euros na loja.\n", encoding="utf-8")
    base = ("--base", str(tiny_llama(tmp_path / "base")), "--quantization", "none", "--dtype", "float32")
    limits = ("--count", "3", "--max-new-tokens", "8", "--json")
    code, out, err = run(workspace, "synthesize", str(tmp_path / "facts.txt"), *base, *limits)
    told = json.loads(out)
    assert (code, told["asked"], told["facts"]) == (0, 3, 1)
    assert told["kept"] + sum(told["reasons"].values()) == 3
    assert (workspace.data / "synthetic.jsonl").exists()
    assert "read some before you use them" in err
    assert "one that was rejected, " in err
    assert "dialogues passed: a larger base" in err
    assert "embedded base is too small" not in err
    code, out, err = run(workspace, "synthesize", str(tmp_path / "none.txt"), *base)
    assert (code, out) == (1, "")
    assert "none.txt cannot be read" in err


@pytest.mark.slow
def test_synthesize_says_that_the_embedded_base_is_too_small(workspace, tmp_path):
    (tmp_path / "facts.txt").write_text("O tapete custa 90 euros na loja.\n", encoding="utf-8")
    code, _, err = run(workspace, "synthesize", str(tmp_path / "facts.txt"), "--count", "1", "--max-new-tokens", "8")
    assert code == 0
    assert "embedded base is too small to write dialogues" in err


def test_notes_on_synthesis_name_the_share_and_the_file(tmp_path):
    good = Synthesis(
        tmp_path / "s.jsonl", "m", facts=2, asked=10, kept=9, records=12, reasons={"refusal": 1}, example="refusal: x"
    )
    notes = list(_synthesis_notes(good, share=0.3))
    assert any("s.jsonl to `prepare`" in note and "at most 30%" in note for note in notes)
    assert not any("a larger base" in note for note in notes)
