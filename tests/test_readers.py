"""Readers: every kind of file, its defects, and the line each item came from."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_router.config import DataConfig
from moe_router.data.clean import clean
from moe_router.data.readers import expand, read_file
from moe_router.data.records import Message
from moe_router.errors import InputError

DATA = DataConfig()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, config=DATA):
    """The source, read to its end once."""
    source = read_file(path, config, path.name)
    assert source.count == 0
    assert len(source.items) == source.count
    return source


def pairs(source):
    return [(item.prompt, item.response) for item in source.items if not item.rule]


def refused(source):
    return [(item.rule, item.line) for item in source.items if item.rule]


def test_chat_turns_span_lines_and_carry_history(tmp_path):
    log = "User: Hi,\nwhere is it?\nAssistant: On its way.\n\n- truck 4\nUSER: Thanks. When?\nassistant: Today.\n"
    first, second = read(write(tmp_path / "chat.txt", log)).items
    assert (first.prompt, first.response, first.line) == ("Hi,\nwhere is it?", "On its way.\n\n- truck 4", 1)
    assert (second.prompt, second.response, second.line) == ("Thanks. When?", "Today.", 6)
    assert second.history == (Message("user", first.prompt), Message("assistant", first.response))
    assert first.conversation == second.conversation


@pytest.mark.parametrize("separator", ["\n", "\n\n", "# ticket 7\n", "\n# ticket 7 ------\n\n"])
def test_blank_and_hash_lines_end_a_conversation(tmp_path, separator):
    log = "User: a\nAssistant: b\n" + separator + "User: c\nAssistant: d\n"
    one, two = read(write(tmp_path / "chat.txt", log)).items
    assert (two.prompt, two.response, two.history) == ("c", "d", ())
    assert one.conversation != two.conversation


@pytest.mark.parametrize(
    ("user", "assistant"),
    [
        ("Customer", "Agent"),
        ("Usuário", "Assistente"),
        ("CLIENTE", "atendente"),
        ("Usua\u0301rio", "Assistente"),
        ("[10:32] User", "[10:33] Assistant"),
        ("2024-03-01 10:32:07 User", "2024-03-01 10:33 - Agent"),
    ],
)
def test_speakers_have_other_names_and_time_stamps(tmp_path, user, assistant):
    log = f"{user}: Não chegou: e agora?\n{assistant}: Verifico já.\n"
    assert pairs(read(write(tmp_path / "chat.txt", log))) == [("Não chegou: e agora?", "Verifico já.")]


def test_other_names_before_a_colon_are_text(tmp_path):
    log = "User: a\nAssistant: Two things.\nNote: pay first.\nUsers: none\n"
    assert pairs(read(write(tmp_path / "chat.txt", log))) == [("a", "Two things.\nNote: pay first.\nUsers: none")]


def test_a_ticket_that_names_a_model_is_one_turn(tmp_path):
    log = "User: My printer fails.\nModel: HP 12\nAssistant: Restart it.\n"
    assert pairs(read(write(tmp_path / "chat.txt", log))) == [("My printer fails.\nModel: HP 12", "Restart it.")]


def test_turns_without_counterpart_are_named_with_their_line(tmp_path):
    log = "Export of May\n\nAssistant: x\nUser: y\nUser: z\nAssistant: w\n\nUser: end\n"
    source = read(write(tmp_path / "chat.txt", log))
    assert pairs(source) == [("z", "w")]
    assert refused(source) == [("unpaired_turn", line) for line in (1, 3, 4, 8)]


def test_a_log_that_sets_off_every_answer_is_still_paired(tmp_path):
    log = "User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d\n"
    assert pairs(read(write(tmp_path / "chat.txt", log))) == [("a", "b"), ("c", "d")]


def test_text_without_speakers_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"notes\.txt has no turns: begin each with `User:`"):
        read(write(tmp_path / "notes.txt", "Just prose.\n"))


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
        ("a.csv", 'prompt,response\n"a,b\nc,d\n', 2),
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


@pytest.mark.parametrize("text", ['{"prompt": "p"}', '[{"prompt": "p"', '[{"prompt": "p"} 3]', "nothing"])
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
    assert ("c", "d") in pairs(source)
    assert refused(source)[0] == ("malformed", 2)


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "chat.txt"
    path.write_bytes("User: ação\r\nAssistant: não ✓\r\n".encode(encoding))
    assert pairs(read(path)) == [("ação", "não ✓")]


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        ("User: ação".encode("latin-1"), 7),
        ("User: a".encode("utf-16-le"), 1),
        (b"\xef\xbb\xbfab\xff", 5),
        (b"\xff\xfea\x00b", 4),
    ],
)
def test_another_encoding_names_the_byte(tmp_path, data, offset):
    with pytest.raises(InputError, match=rf"chat\.txt is not .* text \(byte {offset}\): convert it to UTF-8"):
        read_text(write(tmp_path / "chat.txt", data))


def test_unusual_line_ends_inside_json_do_not_split_lines(tmp_path):
    row = json.dumps({"prompt": "a\u2028b\x85c", "response": "r"}, ensure_ascii=False)
    assert pairs(read(write(tmp_path / "a.jsonl", row))) == [("a\u2028b\x85c", "r")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_an_empty_file_is_an_error(tmp_path, name):
    with pytest.raises(InputError, match=r"holds no records|has no turns|no prompt and response"):
        read(write(tmp_path / name, ""))


def test_a_folder_gives_its_readable_files_in_order(tmp_path):
    for name in ("b.csv", "a.jsonl", "README.txt", "logo.png", ".hidden.csv", "own.jsonl"):
        write(tmp_path / name, "x")
    (tmp_path / "sub.csv").mkdir()
    found = expand([tmp_path], skip={(tmp_path / "own.jsonl").resolve()})
    assert [path.name for path in found] == ["a.jsonl", "b.csv"]


def test_missing_unknown_and_empty_sources_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv does not exist"):
        expand([tmp_path / "gone.csv"])
    with pytest.raises(InputError, match=r"a\.docx: files of kind '\.docx' are not read; give \.txt, \.jsonl"):
        expand([write(tmp_path / "a.docx", "x")])
    with pytest.raises(InputError, match="holds no file that can be read"):
        expand([tmp_path])
    with pytest.raises(InputError, match="no source given"):
        expand([])


LOG_LINES = st.one_of(
    st.sampled_from(
        ["", " ", "# c", "User:", "User: a", "Assistant: b", "Agent:", "Usuário: ç", "[1] Cliente: x", "System: s"]
    ),
    st.text(max_size=12),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4), lambda v: st.lists(v, max_size=2), max_leaves=3
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool", None]), "content": VALUES}),
    max_size=4,
)
ROWS = st.fixed_dictionaries(
    {}, optional={"prompt": VALUES, "response": VALUES, "messages": MESSAGES | VALUES, "split": VALUES}
)
JSON_LINES = st.one_of(ROWS.map(json.dumps), st.text(max_size=8))


def accounted(path):
    """Read and clean; every item is a record or a rejection, and can be written."""
    try:
        source = read(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    cleaned = clean(source.items)
    assert len(cleaned.records) + len(cleaned.rejected) == len(source.items) > 0
    lines = path.read_bytes().decode().count("\n") + 1
    assert all(1 <= item.line <= lines for item in source.items)
    assert all(record.prompt and record.response for record in cleaned.records)


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(LOG_LINES, max_size=12))
def test_any_chat_log_is_accounted_for(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    accounted(write(path, "\n".join(lines).replace("\r", "\n").encode("utf-8", "replace")))


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(JSON_LINES, max_size=8))
def test_any_json_lines_are_accounted_for(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    accounted(write(path, "\n".join(lines).replace("\r", "\n").encode("utf-8", "replace")))
