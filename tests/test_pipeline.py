"""The whole road on the embedded base, small: once per session of this module, then looked at from every side."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import tiny_llama

from moe_router.cli import main
from moe_router.config import BaseConfig, Config, GenerationConfig
from moe_router.data.records import Message
from moe_router.data.sample import write_sample
from moe_router.errors import InputError, LibraryError
from moe_router.experts.base import load_base
from moe_router.experts.library import Library
from moe_router.experts.verify import verify
from moe_router.inference import Router
from moe_router.pipeline import build
from moe_router.workspace import Workspace

ARMS = {"base", "dense_rank", "dense_active", "uniform", "cbtm", "gate_top1", "gate_top2", "oracle"}
FIELDS = {
    *("id", "perplexity", "ci95", "nats_per_token", "target_tokens", "flops_per_token", "active_flops_per_token"),
    *("train_flops", "adapter_params", "active_adapter_params"),
}
CONFIG = Config().override(
    {
        "data": {"limit": 400},
        "slice": {"k": 3},
        "experts": {"epochs": 1.0, "rank": 4, "shared_rank": 4, "search_rates": False},
        "report": {"bootstrap": 100},
    }
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    workspace = Workspace.find(tmp_path_factory.mktemp("workspace"))
    return build(workspace, write_sample(workspace.sample), CONFIG)


@pytest.fixture(scope="module")
def router(built):
    return Router.load(built.workspace.experts, generation=GenerationConfig(max_new_tokens=8))


@pytest.fixture
def copy(built, tmp_path):
    """A library to break."""
    return shutil.copytree(built.workspace.experts, tmp_path / "experts")


def test_report_holds_every_arm_on_the_same_tokens(built):
    report = json.loads((built.workspace.reports / "report.json").read_text())
    arms = {arm["id"]: arm for arm in report["arms"]}
    assert set(arms) >= ARMS
    assert all(set(arm) >= FIELDS for arm in arms.values())
    assert len({arm["target_tokens"] for arm in arms.values()}) == 1
    assert arms["dense_rank"]["trained_tokens"] == arms["dense_active"]["trained_tokens"] == arms["gate_top2"]["trained_tokens"]
    assert arms["dense_active"]["adapter_params"] == 3 * arms["dense_rank"]["adapter_params"]
    assert arms["oracle"]["perplexity"] < arms["uniform"]["perplexity"] < arms["base"]["perplexity"]
    assert (built.workspace.reports / "report.md").read_text().startswith("# ")


def test_a_second_build_does_no_work(built):
    sample = built.workspace.sample
    before = {p: p.stat().st_mtime_ns for p in built.workspace.root.rglob("*") if p.is_file()}
    again = build(built.workspace, [sample / name for name in ("chat.txt", "tickets.csv", "handbook.jsonl")], CONFIG)
    after = {p: p.stat().st_mtime_ns for p in built.workspace.root.rglob("*") if p.is_file()}
    assert after == before
    assert again.report == built.report


def test_router_answers_with_its_route(router):
    answer = router.ask("How long do I have for expense reports?")
    assert answer.text
    assert answer.usage.completion_tokens >= 1
    if not answer.route.abstained:
        assert sum(answer.route.weights.values()) == pytest.approx(1)
        assert list(answer.route.weights.values()) == sorted(answer.route.weights.values(), reverse=True)
    assert 0 <= answer.route.confidence <= 1


def test_stream_says_what_ask_says(router):
    question = "Who approves annual leave?"
    stream = router.stream(question)
    assert "".join(stream) == router.ask(question).text
    assert stream.route == router.route([question])[0]


def test_many_questions_are_answered_as_one_by_one(router):
    questions = ["Which form do I need for sick leave?", "Who handles bulk orders?", "Como peço um reembolso?"]
    together = router.ask_many(questions)
    assert [a.route.weights.keys() for a in together] == [r.weights.keys() for r in router.route(questions)]
    assert len({a.text for a in together}) > 1


@pytest.mark.parametrize("text", ["", "   ", "\x00\x01", "ação " * 30, "我如何申请退款?"])
def test_odd_prompts_are_answered_without_error(router, text):
    answer = router.ask(text)
    assert answer.usage.finish in {"stop", "length"}
    if not text.strip():
        assert answer.route.abstained


def test_a_prompt_beyond_the_context_routes_but_is_refused_and_the_next_is_answered(router):
    text = "ação " * 3000
    assert router.route([text])[0].confidence >= 0
    with pytest.raises(InputError, match="shorten it"):
        router.ask(text)
    assert router.ask("Who approves annual leave?").text


def test_conversations_route_and_answer(router):
    turns = (Message("user", "Hello"), Message("assistant", "Hello."), Message("user", "Who approves annual leave?"))
    assert router.ask(turns).text


def test_allowed_restricts_the_experts(router):
    name = router.names[1]
    found = router.route(["Who approves annual leave?"], allowed=[name])[0]
    assert set(found.weights) <= {name}
    with pytest.raises(LibraryError, match="nobody"):
        router.route(["x"], allowed=["nobody"])


def test_command_line_asks_and_routes(built):
    runner = CliRunner()
    root = str(built.workspace.root)
    asked = runner.invoke(main, ["ask", "Who approves annual leave?", "--workspace", root, "--json", "--max-new-tokens", "4"])
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.stdout)["text"]
    routed = runner.invoke(main, ["route", "Who approves annual leave?", "--workspace", root, "--json"])
    assert routed.exit_code == 0
    assert json.loads(routed.stdout)


def test_every_expert_is_verified(built):
    checks = list(verify(Library.load(built.workspace.experts)))
    assert len(checks) == 4 * 4  # file, updated, logits, PEFT; for the shared expert and three others
    assert all(check.ok for check in checks)


def test_library_on_disk_serves_what_was_trained(built):
    """The file's adapter in PEFT, on the unquantised numbers that our base holds, gives our logits."""
    from peft import PeftModel

    library = Library.load(built.workspace.experts)
    name = library.names[0]
    tokens = torch.arange(40, 60)[None]
    base = load_base(library.base)
    weights = np.eye(len(library.names), dtype=np.float32)[:1]
    with torch.no_grad(), library.open(base) as model, model.routed(model.route(weights, np.zeros(1))):
        ours = base.model(input_ids=tokens).logits.float()
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base.model, library.path / name).eval()(input_ids=tokens).logits.float()
    assert float((ours - theirs).norm() / theirs.norm()) < 2e-2  # bfloat16


@pytest.mark.parametrize("damage", ["truncated", "nan", "swapped", "missing"])
def test_damaged_expert_is_refused_by_name(copy, damage):
    from safetensors.torch import load_file, save_file

    from moe_router.experts.library import CARD, checksum

    library = Library.load(copy)
    folder = copy / library.names[0]
    weights = folder / "adapter_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "missing":
        weights.unlink()
    elif damage == "swapped":
        shutil.copyfile(copy / library.names[1] / weights.name, weights)
    else:
        tensors = load_file(weights)
        next(iter(tensors.values()))[0, 0] = torch.nan
        save_file(tensors, weights)
        card = json.loads((folder / CARD).read_text())
        (folder / CARD).write_text(json.dumps(card | {"sha256": checksum(folder)}))
    with pytest.raises(LibraryError, match=library.names[0]):
        Library.load(copy).open(load_base(library.base))


def test_library_of_another_base_is_refused(copy, tmp_path):
    other = load_base(BaseConfig(str(tiny_llama(tmp_path / "base")), "none", "float32"))
    with pytest.raises(LibraryError, match="another base"):
        Library.load(copy).open(other)


def test_gate_of_other_experts_is_refused(copy):
    (copy / "kept").mkdir()
    for name in ("gate.json", "gate.safetensors"):
        shutil.copyfile(copy / name, copy / "kept" / name)
    Library.load(copy).remove(Library.load(copy).names[0])
    for path in (copy / "kept").iterdir():
        path.rename(copy / path.name)
    with pytest.raises(LibraryError, match="train-gate"):
        Router.load(copy)


def test_removing_an_expert_leaves_nothing_that_remembers_it(copy):
    name = Library.load(copy).names[0]
    Library.load(copy).remove(name)
    assert not (copy / name).exists()
    assert not any((copy / file).exists() for file in ("gate.json", "gate.safetensors", "losses.safetensors"))


def test_unknown_expert_is_named(copy):
    with pytest.raises(LibraryError, match="nobody"):
        Library.load(copy).remove("nobody")
