"""Cells: the finest partition of the records. A slice is one of them, or several that were merged.

Cells stay where they are when data is added: records known from before keep theirs, new ones go to the nearest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe_router.config import SliceConfig
from moe_router.data.clusters import balanced_kmeans, centroids, subjects
from moe_router.data.records import Record
from moe_router.data.wording import shared_directions
from moe_router.errors import InputError

REACH = 0.05
"""Share of a cell's first training records that lie beyond its reach; of new ones as many, unless the data has drifted."""
FENCES = 3.0
"""Outliers lie this many interquartile ranges under the lower quartile of similarity (Tukey's outer fence)."""
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Cells:
    """Where the cells lie."""

    centers: np.ndarray  # (cells, dimension) float32, unit length
    reach: np.ndarray
    """Least cosine similarity to its centre of all but REACH of a cell's first training records: (cells,) float32."""
    values: tuple[str, ...]
    """Of the field `slice.by`: what a cell's records have there; empty where the cell takes any."""
    sizes: tuple[int, ...]
    """Training records of each cell when it was made."""
    other: int = -1
    """The cell of records that are like no other; -1 without one."""
    below: float = -1.0
    """Records less similar than this to every centre go to `other`."""

    def __len__(self) -> int:
        return len(self.centers)

    def assign(self, embeddings: np.ndarray, values: Sequence[str]) -> np.ndarray:
        """The nearest cell of each record among those of its value; among all cells where none has it.

        *Shape:* embeddings (records, dimension) of queries, values (records,) → (records,) int64.
        """
        found = np.empty(len(embeddings), np.int64)
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            found[part] = self._nearest(embeddings[part], values[part])
        return found

    def _nearest(self, embeddings: np.ndarray, values: Sequence[str]) -> np.ndarray:
        similarity = embeddings @ self.centers.T  # (records, cells)
        if self.other >= 0:
            similarity[:, self.other] = -np.inf
        if any(self.values):
            own = np.array([value if value in self.values else "" for value in values])[:, None] == np.array(self.values)
            own[:, self.other if self.other >= 0 else len(self.values) :] = False
            free = ~own.any(1)
            similarity[~own & ~free[:, None]] = -np.inf
        else:
            free = np.ones(len(similarity), bool)
        labels = similarity.argmax(1)
        if self.other >= 0:
            labels[free & (similarity.max(1) < self.below)] = self.other
        return labels


def field_values(records: Sequence[Record], field: str) -> list[str]:
    """What each record says in a field of its `meta`; empty where it says nothing, or where no field is named."""
    return [record.meta.get(field, "").strip() if field else "" for record in records]


def make_cells(
    records: Sequence[Record], embeddings: np.ndarray, responses: np.ndarray, settings: SliceConfig
) -> tuple[Cells, np.ndarray]:
    """Cells of records that are embedded, and the cell of each training record.

    *Shape:* embeddings (records, dimension) of the queries, responses (training records, dimension) of the answers →
    labels (training records,) int64.
    Raises InputError where the data does not suffice for the settings.
    """
    train = np.array([record.split == "train" for record in records])
    own = embeddings[train]
    kept = [record for record in records if record.split == "train"]
    values, answers = field_values(kept, settings.by), [record.response for record in kept]
    parts = _parts(values, settings)
    labels = np.full(len(own), -1, np.int64)
    bound: list[str] = []
    mean = len(own) / sum(count for _, _, count in parts)
    for value, members, k in parts:
        if members is None:
            labels = find_clusters(own, responses, answers, replace(settings, k=k))
        else:
            ratio = max(1.0, settings.max_ratio * mean * k / len(members))
            local = replace(settings, k=k, max_ratio=ratio)
            found = find_clusters(own[members], responses[members], [answers[i] for i in members], local)
            labels[members] = len(bound) + found
        bound += [value] * k
    left = np.flatnonzero(labels < 0)
    cells = describe_cells(own, labels, tuple(bound))
    if settings.by:
        return _take_in_the_rest(cells, own, labels, left, settings)
    return _set_outliers_apart(cells, own, labels, settings)


def find_clusters(prompts: np.ndarray, responses: np.ndarray, answers: Sequence[str], settings: SliceConfig) -> np.ndarray:
    """*Shape:* prompts, responses (n, dimension) → labels (n,)."""
    shared = shared_directions(prompts, responses, answers, settings)
    return balanced_kmeans(subjects(prompts, responses, settings.k, shared), settings)


def _parts(values: Sequence[str], settings: SliceConfig) -> list[tuple[str, np.ndarray | None, int]]:
    """(value, training records or None for all, number of cells) of each part that is clustered by itself."""
    if not settings.by:
        return [("", None, settings.k)]
    sizes = Counter(values)
    large = sorted(value for value, size in sizes.items() if value and size >= settings.min_records)
    if not large:
        named = f"no value of {settings.by!r} has" if any(values) else f"no record has a field {settings.by!r} with"
        raise InputError(
            f"{named} {settings.min_records} training records (slice.min_records): "
            "name another field with --by, or lower slice.min_records"
        )
    table = np.array(values)
    if settings.by_as == "slices":
        return [(value, np.flatnonzero(table == value), 1) for value in large]
    rest = np.flatnonzero(~np.isin(table, large))
    members = {value: np.flatnonzero(table == value) for value in large}
    if len(rest) >= settings.min_records:
        members[""] = rest
    if len(members) > settings.k:
        raise InputError(
            f"slice.k = {settings.k} is fewer than the {len(members)} values of {settings.by!r}: "
            "raise slice.k, or use --by-as slices"
        )
    counts = _seats({value: len(own) for value, own in members.items()}, settings.k)
    return [(value, own, counts[value]) for value, own in members.items()]


def _seats(sizes: dict[str, int], seats: int) -> dict[str, int]:
    """`seats` over parties by size, one each at least (Webster's highest averages)."""
    given = dict.fromkeys(sizes, 1)
    for _ in range(seats - len(sizes)):
        given[max(sizes, key=lambda party: sizes[party] / (given[party] + 0.5))] += 1
    return given


def describe_cells(own: np.ndarray, labels: np.ndarray, values: tuple[str, ...]) -> Cells:
    """Centres, reach and sizes of labelled training records; -1 labels none. *Shape:* own (n, dimension), labels (n,)."""
    k = len(values)
    centers = centroids(own, labels, k)
    reach = np.zeros(k, np.float32)
    for label in range(k):
        inside = own[labels == label] @ centers[label]
        reach[label] = np.quantile(inside, REACH) if len(inside) else -1.0
    return Cells(centers, reach, values, tuple(np.bincount(labels[labels >= 0], minlength=k).tolist()))


def _with_other(cells: Cells, own: np.ndarray, labels: np.ndarray, apart: np.ndarray, below: float) -> tuple[Cells, np.ndarray]:
    labels = labels.copy()
    labels[apart] = len(cells)
    made = describe_cells(own, labels, (*cells.values, ""))
    return replace(made, other=len(cells), below=below), labels


def _take_in_the_rest(
    cells: Cells, own: np.ndarray, labels: np.ndarray, left: np.ndarray, settings: SliceConfig
) -> tuple[Cells, np.ndarray]:
    """Records whose value is too rare, or missing, form `other` where they are enough, else they go to the nearest cell."""
    if len(left) >= settings.min_records:
        return _with_other(cells, own, labels, left, below=2.0)  # no similarity reaches 2: a value decides, or nothing
    labels[left] = (own[left] @ cells.centers.T).argmax(1)
    return replace(cells, sizes=tuple(np.bincount(labels, minlength=len(cells)).tolist())), labels


def _set_outliers_apart(cells: Cells, own: np.ndarray, labels: np.ndarray, settings: SliceConfig) -> tuple[Cells, np.ndarray]:
    """Training records far from every centre form `other`, if they are enough for an expert."""
    nearest = (own @ cells.centers.T).max(1)
    low, high = np.quantile(nearest, [0.25, 0.75])
    below = min(low - FENCES * (high - low), np.quantile(nearest, settings.outliers))
    apart = np.flatnonzero(nearest < below)
    sizes = np.bincount(np.delete(labels, apart), minlength=len(cells))
    if len(apart) < settings.min_records or sizes.min() < settings.min_records:
        return cells, labels
    return _with_other(cells, own, labels, apart, float(below))
