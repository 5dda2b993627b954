"""Every rule against an export with defects at known lines: recall and precision, listed per rule."""

import json
from pathlib import Path

import pytest
from messy import messy_export

from moe_router.config import Config, DataConfig
from moe_router.data.clean import clean
from moe_router.data.readers import read_file

SGD = Path(__file__).parents[2] / "shared" / "data" / "sgd_dialogues.jsonl"


def synthetic_pairs(count=240):
    goods = ("sofa", "mesa de jantar", "candeeiro", "bookcase", "carpet", "cadeira", "armário", "wardrobe")
    places = ("Lisboa", "São Paulo", "Leeds", "Austin", "Évora", "Bristol", "Recife")
    asks = (
        (
            "Can the {g} that I ordered on day {n} still be sent to {p}, or is it too late for {x}?",
            "Yes, until day {m} of the month.",
        ),
        (
            "Quanto custa entregar em {p} a {g} que comprei na loja {n}, com montagem {x} incluída?",
            "São {m} euros, com montagem.",
        ),
        ("My {g} from {p} has arrived with scratch {n} on its side {x}; who pays for the repair?", "We do: claim {m} is open."),
    )
    made = []
    for n in range(count):
        ask, answer = asks[n % 3]
        values = {
            "g": goods[n % 8],
            "p": places[n % 7],
            "n": n * 37 + 11,
            "x": f"{chr(97 + n % 26)}{chr(97 + n // 26)}",
            "m": n % 29 + 30,
        }
        made.append((ask.format(**values), answer.format(**values)))
    return made


def dialogue_pairs(limit=3000):
    seen, made = set(), []
    for line in SGD.read_text(encoding="utf-8").splitlines():
        turns = json.loads(line)["messages"]
        for user, assistant in zip(turns[::2], turns[1::2], strict=False):
            words = frozenset(user["content"].casefold().split())
            if len(user["content"].split()) >= 8 and words not in seen and len(made) < limit:
                seen.add(words)
                made.append((user["content"], assistant["content"]))
    return made


def scores(made, path):
    """{rule: (injected, recall, precision)} of a messy export."""
    source = read_file(made.write(path), Config().data, "messy.jsonl")
    cleaned = clean(source.items, DataConfig())
    assert len(cleaned.records) + len(cleaned.rejected) == len(source.items)
    found = {(rejection.line, rejection.rule) for rejection in cleaned.rejected}
    injected = set(made.defects.items())
    table = {}
    for rule in sorted(set(made.defects.values()) | {rule for _, rule in found}):
        mine, true = {pair for pair in found if pair[1] == rule}, {pair for pair in injected if pair[1] == rule}
        hit = len(mine & true)
        table[rule] = (len(true), hit / len(true) if true else 1.0, hit / len(mine) if mine else 1.0)
    return table, cleaned


def check(made, path):
    table, cleaned = scores(made, path)
    for rule, (injected, recall, precision) in table.items():
        print(f"{rule:15} {injected:5} injected  recall {recall:6.1%}  precision {precision:6.1%}")  # noqa: T201 (shown by -s)
    low = {rule: row for rule, row in table.items() if min(row[1:]) < 0.98}
    assert not low
    prompts = {int(record.source.rpartition(":")[2]): record.prompt for record in cleaned.records}
    wrong = [line for line, prompt in made.repaired.items() if prompts.get(line) not in (prompt, None)]
    assert len(made.repaired) > 10
    assert len(wrong) <= 0.02 * len(made.repaired)
    assert cleaned.findings.repaired >= 0.98 * sum(line in prompts for line in made.repaired)


def test_defects_of_a_synthetic_export(tmp_path):
    check(messy_export(synthetic_pairs(), each=40), tmp_path / "messy.jsonl")


@pytest.mark.skipif(not SGD.exists(), reason="shared/data/sgd_dialogues.jsonl is not there")
def test_defects_of_real_dialogues(tmp_path):
    check(messy_export(dialogue_pairs(), each=200, seed=1), tmp_path / "messy.jsonl")
