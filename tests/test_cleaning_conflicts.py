"""Answers that cannot both be right."""

import pytest

from moe_router.data.cleaning.conflicts import disagreement

ASKED = "Can I return an opened box?"


@pytest.mark.parametrize(
    ("one", "other", "matter"),
    [
        ("Within 30 days.", "You have 14 days.", "30 ≠ 14"),
        ("São 9,50 €.", "São 10,50 €.", "9,50 ≠ 10,50"),
        ("Yes, bring it back.", "No, opened boxes stay.", "yes ≠ no"),
        ("Sim, pode.", "Não, só fechadas.", "yes ≠ no"),
        ("It can be returned to the shop.", "It can not be returned to the shop.", "one denies what the other says"),
        ("Pode ser devolvida na loja.", "Não pode ser devolvida na loja.", "one denies what the other says"),
        ("Return it to our shop in Porto.", "Return it to our shop in Lisboa.", "Porto ≠ Lisboa"),
    ],
)
def test_disagreements(one, other, matter):
    assert disagreement(ASKED, one, other) == matter
    assert disagreement(ASKED, other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes, within 30 days.", "Yes, you can."),
        ("1. Open it\n2. Pack it", "1. Open it\n2. Pack it\n3. Send it"),
        ("Which box is it?", "When did you buy it?"),
        ("Our shop opens at nine.", "The shop opens at nine."),
        ("Return it to our shop in Porto.", "Bring it back, please."),
        ("Call us at noon on any day.", "Don't hesitate to call us on any day at all."),
        ("", "Anything."),
    ],
)
def test_answers_that_only_differ(one, other):
    assert disagreement(ASKED, one, other) == ""


def test_a_greeting_may_be_answered_in_many_ways():
    assert disagreement("Olá!", "Ticket 12 is open.", "Ticket 13 is open.") == ""
