"""Text as the rules see it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_router.data.cleaning.text import jaccard, repair, shingles, words


@pytest.mark.parametrize(
    "text",
    ["Não consigo aceder à minha conta", "it’s “quoted” text", "Où est le café ?", "Привет, мир", "注文はどこですか"],
)
def test_text_read_in_the_wrong_encoding_is_repaired(text):
    damaged = text.encode().decode("cp1252", "ignore") if text.isascii() else text.encode().decode("latin-1")
    assert damaged != text
    assert repair(damaged) == text


@pytest.mark.parametrize("text", ["plain", "São João às 9", "ﬁle &amp; “x”", "MAÇÃ e Âncora, Ãos", "👍🏽", "ＡＢＣ"])
def test_sound_text_is_left_alone(text):
    assert repair(text) == text


def test_words_compare_alike():
    assert words("Olá, MUNDO! a-b ﬁm") == ("olá", "mundo", "a", "b", "fim")
    assert words("Straße") == words("STRASSE")
    assert words("注文は") == ("注", "文", "は")
    assert words("?!…") == ()


def test_shingles_of_short_texts():
    assert shingles(words("a b c d")) == {"a b c", "b c d"}
    assert shingles(["hi"]) == {"hi"}
    assert shingles([]) == set()


@given(st.sets(st.text(max_size=3)), st.sets(st.text(max_size=3)))
def test_jaccard_is_symmetric_and_bounded(one, other):
    assert jaccard(one, other) == jaccard(other, one)
    assert 0 <= jaccard(one, other) <= 1
    assert jaccard(one, one) == 1
