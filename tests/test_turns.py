"""Turns to pairs: every turn is accounted for, and history stays bounded."""

from hypothesis import given
from hypothesis import strategies as st

from moe_router.data.turns import HISTORY, Item, Turn, fold, pair_turns

CONVERSATION = Item("f", 1, conversation="f:1", meta={"x": "y"})


def turns(roles):
    names = {"s": "system", "u": "user", "a": "assistant", "-": ""}
    return [Turn(names[role], f"{role}{at}", at + 1) for at, role in enumerate(roles)]


def test_pairs_carry_what_came_before():
    first, second = pair_turns(turns("suaua"), CONVERSATION)
    assert [m.content for m in first.history] == ["s0"]
    assert [m.content for m in second.history] == ["s0", "u1", "a2"]
    assert (second.line, second.conversation, second.meta) == (4, "f:1", {"x": "y"})


def test_turns_without_counterpart_are_named():
    found = [(item.line, item.rule) for item in pair_turns(turns("a-uuas"), CONVERSATION)]
    assert found == [(1, "unpaired_turn"), (2, "unpaired_turn"), (3, "unpaired_turn"), (4, ""), (6, "unpaired_turn")]


def test_a_turn_that_is_none_keeps_its_rule():
    broken = Turn("", "?", 2, "broken_markers", "no marker")
    one, two = pair_turns([Turn("user", "a", 1), broken], CONVERSATION)
    assert (one.rule, two.rule, two.reason) == ("unpaired_turn", "broken_markers", "no marker")


def test_what_nobody_says_does_not_part_a_pair():
    notice, pair = pair_turns([Turn("user", "a", 1), Turn("", "joined", 2), Turn("assistant", "b", 3)], CONVERSATION)
    assert (notice.prompt, pair.prompt, pair.response) == ("joined", "a", "b")


def test_an_endless_conversation_is_remembered_in_part():
    *_, last = pair_turns(turns("s" + "ua" * 500), CONVERSATION)
    assert len(last.history) == HISTORY
    assert [m.content for m in last.history[:1] + last.history[-1:]] == ["s0", "a998"]


@given(st.text("sua-", max_size=30))
def test_every_turn_is_accounted_for(roles):
    items = list(pair_turns(turns(roles), CONVERSATION))
    held = {text for item in items for text in (item.prompt, item.response, *(m.content for m in item.history))}
    assert {turn.text for turn in turns(roles)} <= held
    assert sum(2 - bool(item.rule) for item in items) >= len(roles.replace("s", ""))


def test_names_are_compared_without_case_and_accents():
    assert fold("USUÁRIO") == fold("Usua\u0301rio") == "usuario"
