"""The lm-evaluation-harness model against the harness's own, on local tasks and a tiny base."""

# ruff: noqa: E402 - what imports lm_eval comes after the test for it

import json

import pytest
from click.testing import CliRunner
from report_place import make_place

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from moe_router.cli import main
from moe_router.cli.evaluate import ROUTES as OFFERED
from moe_router.cli.evaluate import table
from moe_router.data.templates import template
from moe_router.errors import ConfigError
from moe_router.report.harness import ROUTES, RouterLM, evaluate, rounds

QUESTIONS = [
    ("How do I get a refund?", ["Within 14 days", "Never", "By fax", "In person only"], 0),
    ("Where is my parcel?", ["On its way", "Lost", "At the depot", "Not sent"], 2),
    ("How many days of leave are there, and who signs the form for them?", ["22", "30", "25", "12"], 1),
    ("What does the card cost?", ["Nothing", "10 euros", "5 euros a month", "It depends"], 3),
    ("", ["a", "b c d", "e", "f g"], 1),
]
TASKS = {
    "local_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "local_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "local_answers": """
output_type: generate_until
doc_to_text: "{{question}} A:"
doc_to_target: "x"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12, temperature: 0.0, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files and their data."""
    folder = tmp_path_factory.mktemp("tasks")
    text = "Returns are accepted within 14 days. " * 60  # more than one window of the tiny base
    rows = [{"question": q, "choices": c, "answer": a, "text": f"{q} {text}"} for q, c, a in QUESTIONS]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, body in TASKS.items():
        where = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{where}{body}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(place):
    model = RouterLM(str(place[0].root), "base", batch_size=4)
    yield model
    model.routed_model.detach()


def samples(folder, model):
    """Every response of the harness to every document, by task."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)
    return {name: [row["resps"] for row in rows] for name, rows in found["samples"].items()}, found["results"]


def numbers(responses):
    """The log-likelihoods among a task's responses, in order."""
    if isinstance(responses, float):
        return [responses]
    return [n for part in responses if not isinstance(part, bool) for n in numbers(part)]


def test_without_adapters_it_is_the_harness_own_model_to_the_last_bit(place, folder, model):
    from lm_eval.models.huggingface import HFLM

    model.route = "base"
    plain = HFLM(pretrained=place[1].base.model, dtype="float32", device="cpu", batch_size=4)
    ours, theirs = samples(folder, model), samples(folder, plain)
    assert ours == theirs
    assert set(ours[0]) == set(TASKS)


def test_an_expert_alone_gives_what_peft_gives(place, folder, model, monkeypatch):
    """The shared expert under the harness's own PEFT loading."""
    from lm_eval.models.huggingface import HFLM

    model.route = "shared"
    shared = str(place[0].experts / "shared")
    theirs = samples(folder, HFLM(pretrained=place[1].base.model, peft=shared, dtype="float32", device="cpu", batch_size=4))
    ours = samples(folder, model)
    for task in ("local_choice", "local_text"):
        assert numbers(ours[0][task]) == pytest.approx(numbers(theirs[0][task]), abs=1e-3)
    assert ours[0]["local_answers"] == theirs[0]["local_answers"]


def test_rows_of_a_batch_have_mixtures_of_their_own(place, folder, model):
    """Batches of four under the gate give what one request at a time gives under its own mixture."""
    model.route = "top2"
    asked = [q for q, *_ in QUESTIONS[:4]]
    assert len(set(model.mixtures(asked))) > 1
    together = samples(folder, model)[0]
    model.batch_size_per_gpu = 1
    alone = samples(folder, model)[0]
    model.batch_size_per_gpu = 4
    assert numbers(together["local_choice"]) == pytest.approx(numbers(alone["local_choice"]), abs=1e-3)
    assert together["local_answers"] == alone["local_answers"]


def test_the_gate_sees_what_comes_before_and_nothing_else(model):
    model.route = "soft"
    nothing, question = model.mixtures(["", "How do I get a refund?"])
    assert nothing[:-1] == (0.0, 0.0)
    assert sum(question[:-1]) == pytest.approx(1)
    model.route = "gate"
    assert model.mixtures([""])[0] == (0.0, 0.0, 1.0)


def test_a_long_prompt_is_routed_by_its_end(model):
    model.route = "soft"
    end = "What does the card cost? " * 30
    assert model.mixtures(["How do I get a refund? " * 100 + end]) == model.mixtures([end])


def test_chats_come_in_the_template_of_the_experts(place, model):
    text = model.apply_chat_template([{"role": "user", "content": "How do I get a refund?"}])
    assert text == template("plain").prompt([*_user("How do I get a refund?")])
    model.route = "soft"
    assert model.mixtures([text]) == model.mixtures(["How do I get a refund?"])
    begun = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well"}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == "User: Hello\nAssistant: Well"


def _user(text):
    from moe_router.data.records import Message

    return [Message("user", text)]


def test_equal_tokens_under_two_mixtures_get_a_round_each():
    keys, mixtures = [(1, 2), (3,), (1, 2), (1, 2)], [(1.0,), (1.0,), (0.5,), (1.0,)]
    assert [chosen for _, chosen in rounds(keys, mixtures)] == [[0, 1, 3], [2]]


def test_the_command_offers_every_route():
    assert OFFERED == ROUTES


def test_wrong_arguments_are_named(place, model):
    with pytest.raises(ConfigError, match="route = 'best'"):
        model.route = "best"
    with pytest.raises(ConfigError, match="batch_size = 'auto'"):
        RouterLM(str(place[0].root), batch_size="auto")
    with pytest.raises(ConfigError, match="no task arc_hard"):
        evaluate(place[0].root, ["arc_hard"])


def test_the_harness_finds_it_by_name(place):
    from lm_eval.api.registry import get_model

    made = get_model("moe-router").create_from_arg_string(
        f"workspace={place[0].root},route=base", {"batch_size": 2, "device": "cuda:0"}
    )
    assert made.get_model_info()["library_digest"] == made.library.digest
    assert made.max_length == 256
    made.routed_model.detach()


def test_the_command_compares_routes(place, folder):
    arguments = ["eval", "--tasks", "local_choice", "--route", "base", "--route", "gate", "--task-folder", str(folder)]
    done = CliRunner().invoke(main, [*arguments, "--workspace", str(place[0].root), "--limit", "3", "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert list(value["results"]["local_choice"]["acc,none"]) == ["base", "gate"]
    assert "acc              base 0." in "\n".join(table(value["results"]))
