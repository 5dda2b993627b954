"""The slice stage: records embedded, put into cells of similar size, and the cells named as slices.

Cells are made once. Later runs put new records into them and keep the others where they are, until settings change, most
of the data is replaced, or slicing anew is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from moe_router.config import Config, SliceConfig
from moe_router.data.cells import Cells, field_values, make_cells
from moe_router.data.choose import Probe, Tried, choose_k
from moe_router.data.clusters import centroids
from moe_router.data.drift import Drift, measure_drift
from moe_router.data.embed import embedder_digest
from moe_router.data.embeddings import embed_records, suggestion
from moe_router.data.grouping import Grouping
from moe_router.data.naming import distinguishing_words, label_names, slice_names
from moe_router.data.records import Record, load_records
from moe_router.data.sliced import FORMAT, ORIGIN, Slices, edited, save_slices, stored_slices
from moe_router.errors import ConfigError, InputError, WorkspaceError
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace, digest_file, digest_json

__all__ = ["Slices", "cluster", "slice_records"]

TYPICAL = 3
"""Typical prompts shown of each slice."""
SAME_DATA = 0.5
"""Share of the records that the cells were made of that must still be there for the cells to be kept."""
_SILENT = Silent()


def slice_records(
    workspace: Workspace, config: Config, progress: Progress = _SILENT, probe: Probe | None = None, anew: bool = False
) -> Slices:
    """Embed all records and put them into slices: those of before where there are any (unless `anew`), else new clusters.

    An edited slices.toml is applied. `probe` measures what a number of slices gains, which `slice.k = auto` needs.
    Raises InputError, before anything but the embeddings is written, when there is too little data for the settings.
    """
    settings = config.slice
    records_sha256 = digest_file(workspace.require(workspace.records, "prepare"))
    embedder = embedder_digest(settings.embedder)
    source = digest_json([FORMAT, records_sha256, settings.embedder, embedder])
    recipe = digest_json([FORMAT, embedder, asdict(settings)])
    inputs = digest_json([source, recipe])
    earlier = None if anew else _earlier(workspace, recipe)
    grouping = earlier and edited(workspace, earlier)
    if earlier and grouping == earlier.grouping and earlier.inputs == inputs:
        return earlier
    records = load_records(workspace.records)
    if not earlier or not _continues(earlier, records):
        _check_k(records, settings, probe)
        earlier = None
    embeddings, responses = embed_records(workspace, records, settings.embedder, source, progress)
    notes = [note for note in (suggestion(workspace, settings.embedder),) if note]
    if earlier and grouping:
        progress.stage("slice", 1)
        made = _continued(earlier, grouping, records, embeddings, settings)
    else:
        chosen, curve = _chosen(records, embeddings, responses, settings, probe, progress)
        progress.stage("slice", 1)
        made = replace(cluster(records, embeddings, responses, chosen), curve=curve)
    origin = {"embedder_digest": embedder, "source": source, "inputs": inputs, "records_sha256": records_sha256}
    made = replace(made, recipe=recipe, **origin)
    save_slices(workspace, made, config.data.seed)
    progress.advance(1)
    if made.drift.high:
        notes.append(f"{drift_line(made.drift)}: the data has drifted, `moe-router slice --anew` makes new slices")
    return replace(made, fresh=True, notes=tuple(notes))


def cluster(records: Sequence[Record], embeddings: np.ndarray, responses: np.ndarray, settings: SliceConfig) -> Slices:
    """Slices of records that are embedded already.

    *Shape:* embeddings (records, dimension) of the queries; responses (training records, dimension) of the answers.
    Raises InputError when a slice has fewer training records than `settings.min_records`.
    """
    cells, own = make_cells(records, embeddings, responses, settings)
    kept = [record for record in records if record.split == "train"]
    assigned = cells.assign(embeddings, field_values(records, settings.by))
    assigned[_train(records)] = own
    words = distinguishing_words([record.prompt for record in kept], own, len(cells))
    by_label = _by_label(settings)
    names = label_names(cells.values, cells.other) if by_label else slice_names(words, cells.other)
    names = ("all",) if len(cells) == 1 and not by_label else names
    grouping = Grouping(names, tuple((cell,) for cell in range(len(cells))))
    made = describe(records, embeddings, cells, assigned, grouping, settings.embedder, settings.by, words)
    check_sizes(made.names, made.sizes, settings)
    return replace(made, known=hashes(kept), home=own, drift=Drift(moved=(0.0,) * len(names)))


def describe(
    records: Sequence[Record],
    embeddings: np.ndarray,
    cells: Cells,
    assigned: np.ndarray,
    grouping: Grouping,
    embedder: str,
    by: str = "",
    words: tuple[tuple[str, ...], ...] = (),
) -> Slices:
    """Slices as `grouping` makes them of cells: their sizes, words, typical prompts and centroids.

    *Shape:* embeddings (records, dimension), assigned (records,) cells.
    """
    train = _train(records)
    prompts = [record.prompt for record in records if record.split == "train"]
    labels = slice_of(grouping)[assigned]
    k = len(grouping.names)
    centers = centroids(embeddings[train], labels[train], k)
    return Slices(
        names=grouping.names,
        members=grouping.members,
        sizes=tuple(np.bincount(labels[train], minlength=k).tolist()),
        words=words or distinguishing_words(prompts, labels[train], k),
        prompts=typical_prompts(prompts, embeddings[train], labels[train], centers),
        centroids=centers,
        labels=labels,
        embeddings=embeddings,
        cells=cells,
        known=np.empty(0, np.uint64),
        home=np.empty(0, np.int64),
        embedder=embedder,
        by=by,
        digest=digest_json(
            [grouping.names, [[r.id, label] for r, label in zip(records, labels.tolist(), strict=True)]],
        ),
    )


def slice_of(grouping: Grouping) -> np.ndarray:
    """The slice of each cell: (cells,) int64."""
    found = np.zeros(sum(map(len, grouping.members)), np.int64)
    for at, cells in enumerate(grouping.members):
        found[list(cells)] = at
    return found


def place(slices: Slices, records: Sequence[Record], embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cell of every record, and which are training records that came after the cells were made.

    Training records that the cells were made of keep theirs; all others go to the nearest. *Shape:* embeddings (records,
    dimension) → (records,) int64, (records,) bool.
    """
    assigned = slices.cells.assign(embeddings, field_values(records, slices.by))
    train = _train(records)
    order = np.argsort(slices.known)
    ids = hashes(records)
    at = np.minimum(np.searchsorted(slices.known, ids, sorter=order), len(order) - 1)
    seen = train & (slices.known[order[at]] == ids)
    assigned[seen] = slices.home[order[at[seen]]]
    return assigned, train & ~seen


def regrouped(slices: Slices, grouping: Grouping, records: Sequence[Record], embeddings: np.ndarray) -> Slices:
    """The same cells as other slices, with the records as they are now. Raises InputError for a grouping that is none."""
    grouping.check(len(slices.cells))
    assigned, later = place(slices, records, embeddings)
    made = describe(records, embeddings, slices.cells, assigned, grouping, slices.embedder, slices.by)
    train = _train(records)
    drift = measure_drift(slices.cells, slice_of(grouping), embeddings[train], assigned[train], later[train])
    kept = {name: getattr(slices, name) for name in (*ORIGIN, "known", "home", "curve", "embedder_digest")}
    return replace(made, drift=drift, **kept)


def typical_prompts(
    prompts: Sequence[str], embeddings: np.ndarray, labels: np.ndarray, centers: np.ndarray
) -> tuple[tuple[str, ...], ...]:
    """The TYPICAL prompts nearest to each centroid, equal ones once. *Shape:* (n, dimension), (n,), (k, dimension)."""
    found = []
    for label, center in enumerate(centers):
        own = np.flatnonzero(labels == label)
        nearest = own[np.argsort(-(embeddings[own] @ center), kind="stable")]
        found.append(tuple(dict.fromkeys(prompts[i] for i in nearest))[:TYPICAL])
    return tuple(found)


def drift_line(drift: Drift) -> str:
    """One line of figures."""
    return (
        f"{drift.new:,} training records came after the slices were made, {drift.outside:.0%} of them beyond their reach "
        f"(5 % without drift), spread {drift.spread:.2f} (0 alike, 1 disjoint)"
    )


def check_sizes(names: Sequence[str], sizes: Sequence[int], settings: SliceConfig, lower: str = "slice.k") -> None:
    """Raises InputError when a slice has too few training records for an expert."""
    smallest = int(np.argmin(sizes))
    if sizes[smallest] < settings.min_records:
        raise InputError(
            f"slice {names[smallest]!r} has {sizes[smallest]} training records, fewer than slice.min_records = "
            f"{settings.min_records}: lower {lower} or slice.min_records"
        )


def _continued(
    earlier: Slices, grouping: Grouping, records: Sequence[Record], embeddings: np.ndarray, settings: SliceConfig
) -> Slices:
    made = regrouped(earlier, grouping, records, embeddings)
    check_sizes(made.names, made.sizes, settings)
    return made


def _chosen(
    records: Sequence[Record],
    embeddings: np.ndarray,
    responses: np.ndarray,
    settings: SliceConfig,
    probe: Probe | None,
    progress: Progress,
) -> tuple[SliceConfig, tuple[Tried, ...]]:
    """The settings with k decided, and what each k gained."""
    if settings.k or _by_label(settings) or probe is None:
        return settings, ()
    return choose_k(records, embeddings, responses, settings, probe, progress)


def _by_label(settings: SliceConfig) -> bool:
    """Whether a field's values are the slices."""
    return bool(settings.by) and settings.by_as == "slices"


def _continues(earlier: Slices, records: Sequence[Record]) -> bool:
    """Whether most of the records that the cells were made of are still there."""
    return np.isin(earlier.known, hashes(records)).mean() >= SAME_DATA


def _train(records: Sequence[Record]) -> np.ndarray:
    return np.array([record.split == "train" for record in records])


def hashes(records: Sequence[Record]) -> np.ndarray:
    """64 bits of each record's id: (records,) uint64."""
    digests = b"".join(hashlib.blake2b(record.id.encode(), digest_size=8).digest() for record in records)
    return np.frombuffer(digests, np.uint64)


def _check_k(records: Sequence[Record], settings: SliceConfig, probe: Probe | None) -> None:
    if not settings.k and not _by_label(settings) and probe is None:
        raise ConfigError("slice.k = auto needs a probe that trains: give `slice_records` one, or set slice.k")
    count = sum(record.split == "train" for record in records)
    most = count // settings.min_records
    if most < 1:
        raise InputError(
            f"{count} training records are fewer than slice.min_records = {settings.min_records}: "
            "add data or lower slice.min_records"
        )
    if settings.k > most and not _by_label(settings):
        raise InputError(
            f"slice.k = {settings.k} is too many for {count} training records with slice.min_records = "
            f"{settings.min_records}: lower slice.k to at most {most}, or lower slice.min_records"
        )


def _earlier(workspace: Workspace, recipe: str) -> Slices | None:
    """The earlier result, if it was made with the same settings and its files are whole."""
    try:
        found = stored_slices(workspace)
    except WorkspaceError:
        return None
    return found if found.recipe == recipe else None
