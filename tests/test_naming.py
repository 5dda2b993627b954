"""Slice names: words that set a slice apart, in any language, as folder names."""

import re

import numpy as np

from moe_router.data.naming import distinguishing_words, slice_names


def test_words_of_one_slice_alone_come_first():
    texts = ["how do I return the rug", "the rug return", "when is the payroll run", "the payroll run of May"]
    words = distinguishing_words(texts, np.array([0, 0, 1, 1]), 2)
    assert set(words[0][:2]) == {"rug", "return"}
    assert set(words[1][:2]) == {"payroll", "run"}
    assert "the" not in words[0][:2] + words[1][:2]


def test_accents_stay_in_words_and_leave_names():
    texts = ["férias anuais", "pedir fe\u0301rias", "devolução do produto", "devolução"]
    words = distinguishing_words(texts, np.array([0, 0, 1, 1]), 2)
    assert words[0][0] == "férias"
    assert words[1][0] == "devolução"
    names = slice_names(words)
    assert names[0].startswith("ferias-")
    assert names[1].startswith("devolucao-")


def test_names_take_one_form_of_a_word():
    assert slice_names([("orders", "order", "ordering", "bulk")]) == ("orders-bulk",)
    assert slice_names([("cash", "card")]) == ("cash-card",)


def test_names_are_distinct_safe_and_never_the_shared_experts():
    words = [("rug", "sofa"), ("rug", "sofa"), ("shared",), ("退货", "订单"), (), ("x" * 300, "a")]
    names = slice_names(words)
    assert len(set(names)) == len(words)
    assert "shared" not in names
    assert all(re.fullmatch(r"[a-z0-9-]{1,60}", name) for name in names)


def test_texts_without_words_give_numbered_names():
    words = distinguishing_words(["12 34", "??"], np.array([0, 1]), 2)
    assert slice_names(words) == ("slice-1", "slice-2")


def test_words_that_all_slices_use_stay_out_however_frequent():
    own = (("rug", "sofa", "lamp", "desk"), ("payroll", "salary", "bonus", "pension"), ("laptop", "screen", "phone", "cable"))
    texts = [f"what about the {word}" for words in own for word in words for _ in range(2)]
    found = distinguishing_words(texts, np.repeat(range(3), 8), 3)
    assert all(set(words[:4]) == set(expected) for words, expected in zip(found, own, strict=True))
