"""How much of what records share is mere wording: judged by what slices tell about the words of held-out answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_router.config import SliceConfig
from moe_router.data.clusters import balanced_kmeans, most_shared, subjects

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SAMPLE = 4000
"""Records that the spaces are compared on."""
PRIOR = 50.0
"""Weight of the words of all records against those of a slice, in square roots of the vocabulary."""
_CHARACTERS = 600
_FEWEST = 20


def shared_directions(prompts: np.ndarray, responses: np.ndarray, answers: Sequence[str], settings: SliceConfig) -> int:
    """The number of directions to take out of the space that slices are found in.

    Taken out, the strongest directions help where many records are worded alike, and hurt where they are what the records
    are about. Of the numbers possible the one is taken whose slices save most nats on the rare words of answers that the
    word counts were not made of; where words tell nothing, the largest.
    *Shape:* prompts, responses (n, dimension); answers (n,) texts.
    """
    most = most_shared(settings.k)
    if not most or len(answers) < _FEWEST:
        return most
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(answers))[:SAMPLE])
    counts = _rare_words([answers[i][:_CHARACTERS] for i in chosen])
    if counts is None:
        return most

    def saved(shared: int) -> float:
        points = subjects(prompts[chosen], responses[chosen], settings.k, shared)
        return nats_saved(counts, balanced_kmeans(points, settings))

    return max(range(most, -1, -1), key=saved)


def _rare_words(texts: Sequence[str]) -> csr_matrix | None:
    """Word counts, each times the squared inverse document frequency of its word; None without words. (texts, words)"""
    from sklearn.feature_extraction.text import CountVectorizer

    try:
        counts = CountVectorizer(token_pattern=r"\b[^\W\d_]{3,}\b", min_df=2).fit_transform(texts)
    except ValueError:  # not one word twice, as in a script that has no spaces
        return None
    rarity = np.log(len(texts) / np.asarray((counts > 0).sum(0)).ravel())
    return counts.multiply(rarity**2).tocsr() if rarity.any() else None


def nats_saved(counts: csr_matrix, labels: np.ndarray) -> float:
    """Nats that knowing a record's slice saves on a word of its answer, under unigram models of the other half's records.

    A slice's model is smoothed by that of all slices (Dirichlet prior). *Shape:* counts (n, words), labels (n,).
    """
    half = np.arange(len(labels)) % 2
    saved = total = 0.0
    for held in (0, 1):
        every = np.asarray(counts[half != held].sum(0)).ravel() + 0.5  # (words,)
        every /= every.sum()
        weight = PRIOR * len(every) ** 0.5
        for label in range(labels.max() + 1):
            own = np.asarray(counts[(half != held) & (labels == label)].sum(0)).ravel()
            asked = np.asarray(counts[(half == held) & (labels == label)].sum(0)).ravel()
            model = (own + weight * every) / (own.sum() + weight)
            saved += float(asked @ np.log(model / every))
            total += float(asked.sum())
    return saved / total
