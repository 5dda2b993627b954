"""Which columns are the prompt and the response, and what a row holds besides."""

import json

import pytest
from intake import pairs, read, refused, write

from moe_router.config import DataConfig
from moe_router.errors import InputError


def test_fields_are_taken_as_named(tmp_path):
    path = write(tmp_path / "t.csv", "prompt,response,text,label\np,r,t,l\n")
    assert pairs(read(path, DataConfig(prompt_field="text", response_field="label"))) == [("t", "l")]
    assert read(path, DataConfig(prompt_field="text", response_field="label")).note == ""
    assert pairs(read(path, DataConfig(response_field="label"))) == [("p", "l")]


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("user,message,reply,agent", "message reply"),
        ("customer,agent,subject,description,resolution", "description resolution"),
        ("cliente,mensagem,atendente,resposta", "mensagem resposta"),
        ("User,Assistant", "User Assistant"),
        ("Cliente,Atendente", "Cliente Atendente"),
        ("Customer Message,Agent Reply", "Customer Message Agent Reply"),
    ],
)
def test_a_column_of_names_is_not_taken_for_what_they_say(tmp_path, header, chosen):
    columns = header.split(",")
    (pair,) = pairs(read(write(tmp_path / "t.csv", f"{header}\n{header}\n")))
    assert " ".join(pair) == chosen and set(pair) <= set(columns)


def test_a_table_without_known_fields_names_columns_and_flags(tmp_path):
    path = write(tmp_path / "t.csv", "alpha,beta\n1,2\n")
    with pytest.raises(InputError, match=r"t\.csv.*\(alpha, beta\).*--prompt-field and --response-field"):
        read(path)


@pytest.mark.parametrize(
    ("row", "asked", "answered", "before"),
    [
        ({"instruction": "Sum", "input": "1 2", "output": "3"}, "Sum\n1 2", "3", []),
        ({"system_prompt": "Be kind.", "question": "q", "response": "r"}, "q", "r", ["Be kind."]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}], "system": "s"}, "q", "r", ["s"]),
        ({"text": "### Human: q### Assistant: r"}, "q", "r", []),
        ({"text": "### System:\nSê breve.\n\n### User:\nQuê?\n\n### Assistant:\n# r\n\n"}, "Quê?", "# r", ["Sê breve."]),
        (
            {"text": "Below.\n\n### Instruction:\nSum\n\n### Input:\n1 2\n\n### Response:\n3"},
            "Sum\n1 2",
            "3",
            ["Below."],
        ),
        ({"conversation": "### Comment: q ### REPLY: r ### END."}, "q", "r", []),
    ],
)
def test_forms_of_a_row(tmp_path, row, asked, answered, before):
    (item,) = read(write(tmp_path / "a.jsonl", json.dumps(row))).items
    assert (item.rule, item.prompt, item.response) == ("", asked, answered)
    assert [message.content for message in item.history] == before


@pytest.mark.parametrize(
    ("prompt", "response", "rule"),
    [
        ("q", "r ### END. ### Comment: x ### REPLY: y", "run_together"),
        ("q ### REPLY: r ### Comment: x", "r", "broken_markers"),
        ("q", "r User: next? Assistant: yes.", "run_together"),
        ("q", "r<|im_end|>", "broken_markers"),
        ("[INST] q", "r", "broken_markers"),
        ("Summarise:\nUser: a\nAssistant: b", "### Response:\nUser: is a field of the form.", ""),
        ("Qual é o prazo?", "### Assistente técnico\nTrinta dias.", ""),
    ],
)
def test_markers_left_in_a_pair(tmp_path, prompt, response, rule):
    (item,) = read(write(tmp_path / "a.jsonl", json.dumps({"prompt": prompt, "response": response}))).items
    assert item.rule == rule


def test_a_marked_text_with_a_broken_marker_is_rejected_whole(tmp_path):
    good, bad = "### Human: a### Assistant: b", "### Human: a### Assistant b### Human: c### Assistant: d"
    source = read(write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": text}) for text in (good, bad, "", good))))
    assert pairs(source) == [("a", "b"), ("", ""), ("a", "b")]
    assert refused(source) == [("broken_markers", 2)]
