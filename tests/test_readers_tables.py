"""Tables: every kind of file, its defects, and the line each row came from."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intake import accounted, pairs, read, refused, said, write

from moe_router.data.records import Message
from moe_router.errors import InputError


def test_jsonl_keeps_scalars_and_the_declared_split(tmp_path):
    row = {"question": "q", "answer": 42, "department": "HR", "vip": True, "tags": ["x"], "none": None, "split": "Valid"}
    source = read(write(tmp_path / "a.jsonl", "\n" + json.dumps(row) + "\n"))
    (item,) = source.items
    assert (item.prompt, item.response, item.line, item.split) == ("q", "42", 2, "tune")
    assert item.meta == {"department": "HR", "vip": "true"}
    assert source.note == "a.jsonl: prompt from 'question', response from 'answer'"


def test_an_unknown_split_stays_a_plain_field(tmp_path):
    (item,) = read(write(tmp_path / "a.jsonl", '{"prompt": "p", "response": "r", "split": "fold 3"}')).items
    assert (item.split, item.meta) == ("", {"split": "fold 3"})


def test_messages_become_a_record_for_each_answer(tmp_path):
    turns = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("human", "c"), ("model", "d"), ("user", "e")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns], "domain": "x"}
    source = read(write(tmp_path / "a.jsonl", json.dumps(row)))
    assert pairs(source) == [("a", "b"), ("c", "d")]
    assert refused(source) == [("unpaired_turn", 1)]
    assert source.items[1].history == (Message("system", "Be kind."), Message("user", "a"), Message("assistant", "b"))
    assert {item.meta["domain"] for item in source.items} == {"x"}


def test_messages_in_parts_and_in_from_value_form(tmp_path):
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]}
    named = {"messages": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}
    assert pairs(read(write(tmp_path / "a.jsonl", f"{json.dumps(parts)}\n{json.dumps(named)}"))) == [("a", "b"), ("c", "d")]


def test_malformed_lines_are_rejected_one_by_one(tmp_path):
    good = '{"prompt": "p", "response": "r"}'
    bad = [
        "{nonsense",
        "[1]",
        '"text"',
        '{"prompt": ["p"], "response": "r"}',
        '{"prompt": "\\ud800", "response": "r"}',
        "[" * 9000,
    ]
    source = read(write(tmp_path / "a.jsonl", "\n".join([good, *bad, good])))
    assert pairs(source) == [("p", "r"), ("p", "r")]
    assert refused(source) == [("malformed", line) for line in range(2, 8)]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        [3],
        [{"role": "tool", "content": "x"}],
        [{"role": "system", "content": "x"}],
        [{"role": "user", "content": 3}],
    ],
)
def test_malformed_conversations_are_rejected(tmp_path, messages):
    source = read(write(tmp_path / "a.jsonl", json.dumps({"messages": messages})))
    assert refused(source) == [("malformed", 1)]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.jsonl", "\nprompt,response\np,r\n", 2),
        ("a.json", "[1,\n2]", 1),
        ("a.csv", 'prompt,response\n"a,b\nc\n', 2),
    ],
)
def test_only_malformed_rows_is_an_error(tmp_path, name, text, line):
    with pytest.raises(InputError, match=rf"{name}: nothing in it can be read \(line {line}: "):
        read(write(tmp_path / name, text))


def test_json_array_items_know_their_line(tmp_path):
    text = '[\n  {"prompt": "p\\n", "response": "r"},\n\n  {"prompt": "q",\n   "response": "s"}, 7\n]'
    source = read(write(tmp_path / "a.json", text))
    assert [(item.prompt.strip(), item.line) for item in source.items] == [("p", 2), ("q", 4), ("7", 5)]
    assert refused(source) == [("malformed", 5)]


@pytest.mark.parametrize("text", ['[{"prompt": "p"', '{"prompt": "p"} 3', "[] 4", '[{"prompt": "p"} 3]', "nothing"])
def test_other_json_is_an_error(tmp_path, text):
    with pytest.raises(InputError, match=r"a\.json is not a JSON array"):
        read(write(tmp_path / "a.json", text))


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_tables_by_delimiter(tmp_path, suffix, mark):
    rows = [
        ["id", "Pergunta", "Resposta", "Setor"],
        ["1", '"Prazo,\nqual; é?"', "30 dias", "RH"],
        ["2", "b", "c", "TI"],
        ["3", "d"],
    ]
    text = "\r\n".join(mark.join(row) for row in rows)
    source = read(write(tmp_path / f"t.{suffix}", text))
    assert pairs(source) == [("Prazo,\nqual; é?", "30 dias"), ("b", "c")]
    assert [item.line for item in source.items] == [2, 4, 5]
    assert source.items[0].meta == {"id": "1", "Setor": "RH"}
    assert refused(source) == [("malformed", 5)]


def test_a_field_too_large_for_csv_is_rejected_not_fatal(tmp_path):
    text = f"prompt,response\na,{'x' * 200_000}\nc,d\n"
    source = read(write(tmp_path / "t.csv", text))
    assert pairs(source) == [("c", "d")]
    assert refused(source) == [("malformed", 2)]


def test_parquet_by_row(tmp_path):
    rows = [
        {"instruction": "Sum", "input": "1 2", "output": "3", "n": 1},
        {"instruction": "Hi", "input": "", "output": None, "n": 2},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = read(tmp_path / "a.parquet")
    assert pairs(source) == [("Sum\n1 2", "3"), ("Hi", "")]
    assert [item.line for item in source.items] == [1, 2]
    assert source.items[0].meta == {"n": "1"}


def test_damaged_parquet_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a question"] * 9, "response": ["an answer"] * 9}), path, compression="none")
    good = path.read_bytes()
    footer = bytes(255 if len(good) - 60 < at < len(good) - 40 else byte for at, byte in enumerate(good))
    for damaged in (b"PAR1 no", good[:-9], good[: len(good) // 2], good.replace(b"question", b"qu\xffst\xfe\xfdn"), footer):
        assert damaged != good
        with pytest.raises(InputError, match=r"a\.parquet is not a readable Parquet file"):
            read(write(path, damaged))


def test_unusual_line_ends_inside_json_do_not_split_lines(tmp_path):
    row = json.dumps({"prompt": "a\u2028b\x85c", "response": "r"}, ensure_ascii=False)
    assert pairs(read(write(tmp_path / "a.jsonl", row))) == [("a\u2028b\x85c", "r")]


def test_a_stray_quote_does_not_swallow_what_follows(tmp_path):
    text = 'prompt,response\n"a,b\nc,d\n"e\nf",g\nh,"i\n'
    source = read(write(tmp_path / "t.csv", text))
    assert pairs(source) == [("c", "d"), ("e\nf", "g")]
    assert refused(source) == [("malformed", 2), ("malformed", 6)]


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "p", "response": "r"}\n{"prompt": "q", "response": "s"}\n',
        '{"version": 2,\n "data": [{"prompt": "p", "response": "r"}, {"prompt": "q", "response": "s"}]}',
    ],
    ids=["lines", "wrapped"],
)
def test_json_without_an_array_around_it(tmp_path, text):
    assert pairs(read(write(tmp_path / "a.json", text))) == [("p", "r"), ("q", "s")]


def test_a_file_with_one_conversation(tmp_path):
    text = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, indent=1)
    assert pairs(read(write(tmp_path / "a.json", text))) == [("a", "b")]


def test_json_is_read_in_pieces_of_any_size(tmp_path, monkeypatch):
    from moe_router.data.readers import tables

    rows = [{"prompt": "p" * n, "response": f"“{n}”", "n": n} for n in range(1, 60)]
    path = write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False, indent=1))
    whole = read(path).items
    for size in (1, 2, 7, 64):
        monkeypatch.setattr(tables, "CHUNK", size)
        assert read(path).items == whole


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6) | st.sampled_from(
    ['"', '""', '"a', 'a"b', ",", "é"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda v: st.lists(v, max_size=2) | st.dictionaries(st.text(max_size=2), v, max_size=2),
    max_leaves=3,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool", None]), "content": VALUES}),
    max_size=4,
)
ROWS = st.fixed_dictionaries(
    {}, optional={"prompt": VALUES, "response": VALUES, "messages": MESSAGES | VALUES, "text": VALUES, "split": VALUES}
)


def encoded(text):
    return text.replace("\r", "\n").encode("utf-8", "replace")


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(ROWS.map(json.dumps) | st.text(max_size=8), max_size=8))
def test_any_json_lines_are_accounted_for(tmp_path_factory, lines):
    accounted(write(tmp_path_factory.getbasetemp() / "fuzz.jsonl", encoded("\n".join(lines))))


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(ROWS, max_size=5), cut=st.integers(0, 400), indent=st.sampled_from([None, 1]))
def test_any_json_is_accounted_for(tmp_path_factory, rows, cut, indent):
    accounted(write(tmp_path_factory.getbasetemp() / "fuzz.json", encoded(json.dumps(rows, indent=indent)[: cut or None])))


@settings(max_examples=100, deadline=None)
@given(cells=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8), suffix=st.sampled_from(["csv", "tsv"]))
def test_no_line_of_a_table_is_lost(tmp_path_factory, cells, suffix):
    mark = "\t" if suffix == "tsv" else ","
    rows = [f"a{n}z{mark.join(pair)}" for n, pair in enumerate(cells)]
    path = write(tmp_path_factory.getbasetemp() / f"fuzz.{suffix}", encoded("\n".join([f"prompt{mark}response", *rows])))
    items = accounted(path)
    assert all(f"a{n}z" in said(items) for n in range(len(cells))) or not items


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(st.text(max_size=5), st.none() | st.text(max_size=5)), min_size=1, max_size=6))
def test_as_many_items_as_rows(tmp_path_factory, rows):
    made = [{"prompt": prompt, "response": response} for prompt, response in rows]
    folder = tmp_path_factory.getbasetemp()
    pq.write_table(
        pa.Table.from_pylist(made, pa.schema([("prompt", pa.string()), ("response", pa.string())])), folder / "f.parquet"
    )
    files = [
        folder / "f.parquet",
        write(folder / "f.json", json.dumps(made)),
        write(folder / "f.jsonl", "\n".join(map(json.dumps, made))),
    ]
    assert [len(accounted(path)) for path in files] == [len(rows)] * 3


def test_rows_of_one_line_are_conversations_of_their_own(tmp_path):
    first, second = read(write(tmp_path / "a.json", json.dumps([{"prompt": "p", "response": "r"}] * 2))).items
    assert first.line == second.line == 1
    assert first.conversation != second.conversation
