"""Names for slices, from the words that set them apart; no language is assumed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

WORDS = 6
"""Words kept of each slice."""
NAME_WORDS = 2
LONGEST = 24
"""Characters of one word in a name."""
OTHER = "other"
"""The slice of records that are like no other."""
TAKEN = ("shared", "recipes")
"""Names that other folders of a library have."""


def distinguishing_words(texts: Sequence[str], labels: np.ndarray, k: int) -> tuple[tuple[str, ...], ...]:
    """The words that set each of the k slices apart, best first; fewer or none for slices with few words.

    Class-based TF-IDF (Grootendorst 2022): a word's share of its slice's words × log(1 + mean words of a slice / the
    word's count), here also × the share of the word's uses that fall to the slice, which keeps function words of any
    language out without a list of them.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(token_pattern=r"\b[^\W\d_]{3,}\b", min_df=2 if len(texts) > 100 else 1)
    try:
        counts = vectorizer.fit_transform(unicodedata.normalize("NFC", text) for text in texts)
    except ValueError:  # not one word, as in a script that has no spaces
        return ((),) * k
    uses = np.stack([np.asarray(counts[labels == label].sum(0))[0] for label in range(k)]).astype(float)  # (k, words)
    total = np.maximum(uses.sum(0), 1)
    scores = uses / np.maximum(uses.sum(1, keepdims=True), 1) * np.log(1 + uses.sum() / k / total) * (uses / total)
    vocabulary = vectorizer.get_feature_names_out()
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :WORDS]
    return tuple(tuple(str(vocabulary[i]) for i in row if scores[label, i] > 0) for label, row in enumerate(ranked))


def slice_names(words: Sequence[Sequence[str]], other: int = -1, taken: Sequence[str] = ()) -> tuple[str, ...]:
    """A distinct folder name for each slice: its first two unlike words, accents folded; a number where that fails.

    The slice at `other` is called OTHER; `taken` are the names of slices besides these.
    """
    chosen = []
    for number, own in enumerate(words):
        parts: list[str] = []
        for word in filter(None, map(_plain, own)):
            if len(parts) < NAME_WORDS and not any(_alike(word, one) for one in parts):
                parts.append(word)
        chosen.append(OTHER if number == other else "-".join(parts))
    return _distinct(chosen, taken)


def label_names(labels: Sequence[str], other: int = -1) -> tuple[str, ...]:
    """A distinct folder name for each label; the one at `other` is called OTHER."""
    parts = [[_plain(part) for part in re.split(r"[\W_]+", label)] for label in labels]
    return _distinct([OTHER if at == other else "-".join(filter(None, own)) for at, own in enumerate(parts)])


def _distinct(wanted: Sequence[str], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """The names wanted, numbered where one is empty or has been given already."""
    names: list[str] = []
    for number, name in enumerate(wanted, 1):
        stem = name or "slice"
        numbered = (f"{stem}-{n}" for n in range(number, number + len(wanted) + len(taken) + 1))
        used = (*names, *TAKEN, *taken)
        names.append(name if name and name not in used else next(one for one in numbered if one not in used))
    return tuple(names)


def _plain(word: str) -> str:
    """The word in a-z and 0-9; empty for other scripts."""
    folded = unicodedata.normalize("NFKD", word.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "", folded)[:LONGEST]


def _alike(one: str, other: str) -> bool:
    """Whether two words look like forms of one, as order and orders do."""
    stem = max(4, min(len(one), len(other)) - 2)
    return one[:stem] == other[:stem]
