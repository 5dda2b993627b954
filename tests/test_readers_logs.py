"""Chat logs: who speaks, where conversations end, and lines that hold too much."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intake import accounted, pairs, read, refused, said, write

from moe_router.config import DataConfig
from moe_router.data.records import Message
from moe_router.errors import ConfigError, InputError


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


def test_messengers_logs_name_people(tmp_path):
    log = (
        "12/03/2024, 10:30 - As mensagens são protegidas com criptografia de ponta a ponta.\n"
        "12/03/2024, 10:32 - Conceição: Olá, bom dia\n"
        "12/03/2024, 10:32 - Conceição: a encomenda não chegou\n"
        "12/03/2024, 10:40 - João (Loja): Verifico já.\nNota: demora 2 dias\n"
        "\u200e[12/03/24, 10:41:07] Conceição: Obrigada\n"
        "12/03/2024 10:42 - João (Loja): De nada\n"
    )
    source = read(write(tmp_path / "chat.txt", log))
    first = ("Olá, bom dia\na encomenda não chegou", "Verifico já.\nNota: demora 2 dias")
    assert pairs(source) == [first, ("Obrigada", "De nada")]
    assert refused(source) == [("unpaired_turn", 1)]
    assert "guessed who speaks (Conceição=user, João (Loja)=assistant)" in source.note


def test_several_customers_of_one_shop(tmp_path):
    log = "[10:30] Ana: a\n[10:31] Loja: b\n[10:32] Rui: c\n[10:33] Loja: d\n"
    assert pairs(read(write(tmp_path / "chat.txt", log))) == [("a", "b"), ("c", "d")]


def test_a_heading_in_an_answer_is_no_comment(tmp_path):
    log = "# ticket 1\nUser: a\nAssistant: b\n# Steps\n\n1. c\n# ticket 2\nUser: d\nAssistant: e\n# end\n"
    source = read(write(tmp_path / "chat.txt", log))
    assert pairs(source) == [("a", "b\n# Steps\n\n1. c"), ("d", "e")]
    assert source.items[1].history == ()


def test_an_instruction_with_input(tmp_path):
    log = "### Instruction:\nSoma\n\n### Input:\n1 2\n\n### Response:\n3\n"
    ((prompt, response),) = pairs(read(write(tmp_path / "a.txt", log)))
    assert (prompt.split(), response) == (["Soma", "1", "2"], "3")


def test_the_user_says_who_speaks(tmp_path):
    path = write(tmp_path / "chat.txt", "Ana: a\nRui: b\n\nAna: c\nRui: d\n")
    assert pairs(read(path)) == [("a", "b"), ("c", "d")]
    turned = read(path, DataConfig(speakers="Rui=user, ANA=assistant"))
    assert pairs(turned) == [("b", "c")]
    assert turned.note == ""
    with pytest.raises(ConfigError, match=r"data\.speakers: 'Rui' is not of the form name=user"):
        read(path, DataConfig(speakers="Rui"))


@pytest.mark.parametrize(
    "log",
    [
        "### System:\nBe kind.\n\n### User:\na\n\n### Assistant:\n# b\n\nmore\n\n### User:\nc\n\n### Assistant:\nd\n",
        "System: Be kind.\n\nUser: a\n\nAssistant: # b\n\nmore\n\nUser: c\n\nAssistant: d\n",
    ],
    ids=["stablebeluga", "plain"],
)
def test_a_system_turn_begins_a_conversation_that_blank_lines_do_not_end(tmp_path, log):
    source = read(write(tmp_path / "chat.txt", log + "\n" + log.replace("kind", "brief")))
    one, two, three, _ = [item for item in source.items if not item.rule]
    assert [item.prompt.strip() for item in (one, two)] == ["a", "c"]
    assert one.response.split() == ["#", "b", "more"]
    assert [m.content.strip()[:2] for m in two.history] == ["Be", "a", "# "]
    assert three.history[0].content.strip() == "Be brief." and len(three.history) == 1


def test_comments_and_replies_are_a_line_each(tmp_path):
    good = "### Comment: Não chegou #12 ### REPLY: Verifico já: 2 dias. ### END."
    bad = {
        "run_together": "### Comment: a ### REPLY: b ### END. ### Comment: c ### REPLY: d ### END.",
        "unpaired_turn": "### Comment: a ### END.",
    }
    broken = [
        "### Comment: a ## REPLY: b ### END.",
        "### Comment: a REPLY: b ### END.",
        "### Comment: a ### REPLY b ### END.",
        "### Comment: a ### RPLY: b ### END.",
        "Comment: a ### REPLY: b ### END.",
        "### Comment: a ### REPLY: b",
        "### Comment: a ### REPLY: b END.",
        "### Comment: a ### Comment: b ### REPLY: c ### END.",
        "no marker at all",
    ]
    lines = [good, *bad.values(), *broken, good.replace("12", "13")]
    source = read(write(tmp_path / "c.txt", "\n".join(lines)))
    assert pairs(source) == [("Não chegou #12", "Verifico já: 2 dias."), ("Não chegou #13", "Verifico já: 2 dias.")]
    assert refused(source) == [*((rule, 2 + n) for n, rule in enumerate(bad)), *(("broken_markers", 4 + n) for n in range(9))]


def test_comments_may_span_lines(tmp_path):
    log = "### Comment: a\nb\n\nc\n### REPLY: d\n### END.\n### Comment: e\n### Comment: f\n### REPLY: g\nh ### END.\n"
    source = read(write(tmp_path / "c.txt", log))
    assert pairs(source) == [("a\nb\n\nc", "d"), ("f", "g\nh")]
    assert refused(source) == [("broken_markers", 7)]


def test_several_interactions_in_one_line_are_rejected(tmp_path):
    log = (
        "User: a\nAssistant: b\n\nUser: c Assistant: d User: e Assistant: f\n\nUser: g Assistant: h\n"
        "User: Is User: a name?\nAssistant: i\n"
    )
    source = read(write(tmp_path / "chat.txt", log))
    assert pairs(source) == [("a", "b"), ("g", "h"), ("Is User: a name?", "i")]
    assert refused(source) == [("run_together", 4)]


def test_marked_conversations_a_line_each(tmp_path):
    log = "### Human: a### Assistant: b### Human: c ### Assistant: d\n### Human: e### Assistant: f\n"
    first, second, third = read(write(tmp_path / "g.txt", log)).items
    assert [(i.prompt, i.response) for i in (first, second, third)] == [("a", "b"), ("c", "d"), ("e", "f")]
    assert second.history == (Message("user", "a"), Message("assistant", "b")) and third.history == ()


def test_a_turn_without_end_is_cut_and_rejected(tmp_path, monkeypatch):
    from moe_router.data.readers import logs

    monkeypatch.setattr(logs, "MAX_TURN", 50)
    source = read(write(tmp_path / "chat.txt", "User: a\nAssistant: " + "long\n" * 99 + "User: b\nAssistant: c\n"))
    assert pairs(source) == [("b", "c")]
    assert ("over_long", 2) in refused(source)
    assert all(len(item.prompt) < 100 for item in source.items)


LINES = st.one_of(
    st.sampled_from(["", " ", "# c", "User:", "Assistant: b", "Agent:", "Usuário: ç", "[1] Cliente: x", "System: s"]),
    st.sampled_from(["Ana: a", "10:30 x", "10:31 Rui: b", "User: a Assistant: b"]),
    st.sampled_from(["### User: a", "### Assistant:", "### Comment: a ### REPLY: b ### END.", "### END.", "## REPLY:"]),
    st.text(max_size=12),
)


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(LINES, max_size=12))
def test_no_line_of_a_log_is_lost(tmp_path_factory, lines):
    numbered = [f"{line} a{n}z" for n, line in enumerate(lines) if line.strip()]
    text = "\n".join(line.replace("\r", " ").replace("\n", " ").replace("\0", " ") for line in numbered)
    items = accounted(write(tmp_path_factory.getbasetemp() / "fuzz.txt", text.encode("utf-8", "replace")))
    words = said(items)
    assert not items or all(
        f"a{n}z" in words for n, line in enumerate(lines) if line.strip() and not line.strip().startswith("#")
    )


def injected(forms, seed=0, each=40):
    """Lines with defects among `each` times as many good ones; the rule of each bad line."""
    rng = random.Random(seed)
    words = ["a", "minha", "encomenda", "não", "chegou", "café", "às", "três", "REPLY", "comment", "user:", "#12", "amanhã"]
    lines, rules = [], {}
    for number in range(each * len(forms)):
        for rule, form in [("", forms[""]), ("", forms[""]), rng.choice([*forms.items()])]:
            said = [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(4)]
            lines.append(form.format(*said, n=number))
            if rule:
                rules[len(lines)] = rule.partition("/")[0]
    return lines, rules


FORMS = {
    "comments": {
        "": "### Comment: {0} ### REPLY: {1} ### END.",
        "run_together/1": "### Comment: {0} ### REPLY: {1} ### END. ### Comment: {2} ### REPLY: {3} ### END.",
        "run_together/2": "### Comment: {0} ### REPLY: {1} ### Comment: {2} ### REPLY: {3} ### END.",
        "unpaired_turn/1": "### Comment: {0} ### END.",
        "unpaired_turn/2": "### REPLY: {0} ### END.",
        "broken_markers/1": "### Comment: {0} ## REPLY: {1} ### END.",
        "broken_markers/2": "### Comment: {0} ### REPLY {1} ### END.",
        "broken_markers/3": "### Comment: {0} ### REPLY: {1}",
        "broken_markers/4": "## Comment: {0} ### REPLY: {1} ### END.",
        "broken_markers/5": "### Comment: {0} ### RELPY: {1} ### END.",
        "broken_markers/6": "### Comment: {0} REPLY: {1} ### END.",
        "broken_markers/7": "### Comment: {0} ### REPLY: {1} ### EN",
        "broken_markers/8": "Comment: {0} ### REPLY: {1} ### END.",
    },
    "guanaco": {
        "": "### Human: {0}### Assistant: {1}",
        "broken_markers/1": "### Human: {0}## Assistant: {1}### Human: {2}### Assistant: {3}",
        "broken_markers/2": "### Human: {0}### Assistant {1}### Human: {2}### Assistant: {3}",
    },
    "plain": {
        "": "User: {0} Assistant: {1}",
        "run_together/1": "User: {0} Assistant: {1} User: {2} Assistant: {3}",
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_injected_defects_are_found_where_they_are(tmp_path, name):
    lines, rules = injected(FORMS[name])
    source = read(write(tmp_path / "messy.txt", "\n".join(lines)))
    found = {item.line: item.rule for item in source.items if item.rule}
    right = sum(rules.get(line) == rule for line, rule in found.items())
    assert right >= 0.98 * len(rules) > 20
    assert right >= 0.98 * len(found)
    assert len(pairs(source)) + len(found) == len(lines)


def test_a_marker_that_is_no_speaker_inside_a_line(tmp_path):
    log = "### Instruction: a. Instruction: b\n### Response: c\n"
    assert pairs(read(write(tmp_path / "a.txt", log))) == [("a. Instruction: b", "c")]
