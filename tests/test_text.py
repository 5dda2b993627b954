import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from moe_router.experts.base import EMBEDDED_PATH
from moe_router.inference.text import TextStream, held

TOKENIZER = AutoTokenizer.from_pretrained(EMBEDDED_PATH)


def tokens(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def pieces(text, stops=()):
    stream = TextStream(TOKENIZER, stops)
    found = []
    for token in tokens(text):
        found.append(stream.add(token))
        if stream.stopped:
            return found, stream
    return [*found, stream.end()], stream


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
def test_the_pieces_are_the_text(text):
    whole = TOKENIZER.decode(tokens(text)).strip()
    assert "".join(pieces(text)[0]) == whole


@pytest.mark.parametrize("text", ["Devoluções até à sexta-feira.", "日本語です", "naïve 🙂 done"])
def test_no_piece_ends_in_half_a_character(text):
    found, _ = pieces(text)
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)


def test_a_stop_string_ends_the_text_and_no_part_of_it_is_shown():
    found, stream = pieces("It is open.\nUser: and now?", stops=("\nUser:",))
    assert stream.stopped
    assert "".join(found) == stream.text.rstrip() == "It is open."


def test_what_only_began_like_a_stop_string_is_shown_in_the_end():
    found, stream = pieces("A line.\nUse it", stops=("\nUser:",))
    assert not stream.stopped
    assert "".join(found) == "A line.\nUse it"


def test_held_waits_for_stop_strings_and_space():
    assert held("abc", ("xyz",)) == 0
    assert held("ab x", ("xyz",)) == 2
    assert held("abxy", ("xyz", "yb")) == 2
    assert held("ab  ", ()) == 2
