"""Synthetic dialogues: grounded in the sheet, cleaned, marked, the same for a seed; and a base that writes them."""

import json
import re

import pytest
from models import tiny_base

from moe_router.config import DataConfig, GenerationConfig
from moe_router.data.clean import clean
from moe_router.data.readers import read_file
from moe_router.data.records import is_synthetic
from moe_router.data.synthesize import STOP, grounded, prompt_of, read_facts, synthesize
from moe_router.errors import InputError
from moe_router.inference.writer import BaseWriter

SHEET = """\
# Returns
- Rugs can be returned within 30 days with the receipt.
- A refund by card takes 5 working days.

## Entregas
1. A entrega normal demora 4 dias úteis.
- ok
"""


class Rephraser:
    """A writer that asks for the fact and answers with it: good and bad dialogues by turns, in a fixed order."""

    id = "rephraser"

    def __init__(self):
        self.seeds = []
        self.count = 0

    def write(self, prompts, stop, seed):
        self.seeds.append(seed)
        return [self._one(re.findall(r"Fact: (.*)", prompt)[-1]) for prompt in prompts]

    def _one(self, fact):
        self.count += 1
        first = fact.split()[0]
        kinds = (
            f" Question {self.count} on {first}, please?\nAssistant: {fact}",
            f" And number {self.count}?\nAssistant: {fact}\nUser: Are you sure of {self.count}?\nAssistant: Yes: {fact}",
            f" How many is it, {self.count}?\nAssistant: It is 77 days for {fact}",
            f" What about {self.count}?\nAssistant: N/A",
            f" And what of {self.count}?",
            f" Who are you, {self.count}?\nAssistant: As an AI language model, I cannot help with {fact}",
        )
        return kinds[(self.count - 1) % len(kinds)]


@pytest.fixture
def sheet(tmp_path):
    path = tmp_path / "facts.md"
    path.write_text(SHEET, encoding="utf-8")
    return path


def test_facts_are_lines_without_marks_headings_and_scraps(sheet):
    assert read_facts(sheet) == [
        "Rugs can be returned within 30 days with the receipt.",
        "A refund by card takes 5 working days.",
        "A entrega normal demora 4 dias úteis.",
    ]


@pytest.mark.parametrize("text", ["", "# Only a heading\n", "ok\n"])
def test_a_sheet_without_facts_is_an_error(tmp_path, text):
    (tmp_path / "facts.txt").write_text(text)
    with pytest.raises(InputError, match=r"facts\.txt holds no facts"):
        read_facts(tmp_path / "facts.txt")
    with pytest.raises(InputError, match=r"gone\.txt cannot be read"):
        read_facts(tmp_path / "gone.txt")


def test_bad_dialogues_are_rejected_and_counted_and_the_rest_marked(sheet, tmp_path):
    made = synthesize(sheet, tmp_path / "out.jsonl", Rephraser(), 36, seed=1)
    assert made.reasons == {"boilerplate": 6, "refusal": 6, "ungrounded": 6, "unpaired_turn": 6}
    assert (made.asked, made.kept, made.records, made.facts) == (36, 12, 18, 3)
    assert made.example.startswith(("boilerplate: User:", "refusal: User:", "ungrounded: User:", "unpaired_turn: User:"))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 12
    assert {line["synthetic"] for line in lines} == {"rephraser"}
    assert all(line["fact"] in line["messages"][1]["content"] for line in lines)


def test_the_file_is_a_source_whose_records_say_what_they_are(sheet, tmp_path):
    made = synthesize(sheet, tmp_path / "out.jsonl", Rephraser(), 12)
    source = read_file(made.path, DataConfig())
    records = clean(source.items).records
    assert len(records) == made.records == 6
    assert all(is_synthetic(record) for record in records)


def test_a_seed_decides_and_every_fact_has_its_share(sheet, tmp_path):
    writers = [Rephraser(), Rephraser(), Rephraser()]
    for number, (writer, seed) in enumerate(zip(writers, (1, 1, 2), strict=True)):
        synthesize(sheet, tmp_path / f"{number}.jsonl", writer, 40, seed=seed)
    first, again, other = ((tmp_path / f"{number}.jsonl").read_text() for number in range(3))
    assert first == again != other
    assert writers[0].seeds == writers[1].seeds != writers[2].seeds
    assert len(set(writers[0].seeds)) == 3


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("Rugs can be returned within 30 days.", True),
        ("Within 30 days.", True),
        ("Rugs can be returned within 31 days.", False),
        ("The weather is lovely on the coast and everybody dances with rugs.", False),
        ("Yes.", False),
    ],
)
def test_an_answer_keeps_to_its_fact(answer, kept):
    assert grounded(answer, "Rugs can be returned within 30 days with the receipt.", {"30", "5"}) is kept


def test_a_base_writes_the_same_for_a_seed_and_stops_where_told(tmp_path):
    base = tiny_base(tmp_path / "base")
    writer = BaseWriter(base, GenerationConfig(max_new_tokens=24, temperature=1.0))
    prompts = ["Fact: a\nUser:", "Fact: another one, which is longer\nUser:"]
    one, again, other = (writer.tokens(prompts, seed) for seed in (1, 1, 2))
    assert one == again != other
    greedy = BaseWriter(base, GenerationConfig(max_new_tokens=24))
    assert greedy.tokens(prompts, 0)[0] == greedy.tokens(prompts[:1], 1)[0], "padding changes nothing"
    assert len(greedy.write(prompts, (), 0)) == 2
    text = writer._ended(base.tokenizer(" Who?\nAssistant: Me.\n\nFact: b", add_special_tokens=False)["input_ids"], STOP)
    assert text == " Who?\nAssistant: Me."
    assert writer._ended(base.tokenizer(" Who?\nAssistant: Me and", add_special_tokens=False)["input_ids"], STOP) == " Who?"


def test_a_chat_base_is_asked_and_its_answer_begun(tmp_path):
    writer = BaseWriter(tiny_base(tmp_path / "base"), GenerationConfig(), "stablebeluga")
    text = writer._text(prompt_of("Rugs can be returned."))
    assert text.startswith("### User:")
    assert text.endswith("### Assistant:\nUser:")
