"""The slice stage: records embedded, clustered into slices of similar size, and named by their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from moe_router.config import Config, SliceConfig
from moe_router.data.clusters import balanced_kmeans, centroids, subjects
from moe_router.data.embed import embedder_digest, load_embedder, query_text
from moe_router.data.naming import distinguishing_words, slice_names
from moe_router.data.records import Record, load_records
from moe_router.errors import InputError, WorkspaceError
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace, atomic, digest_file, digest_json, read_json, write_json

FORMAT = 1
TYPICAL = 3
"""Typical prompts shown of each slice."""
RESPONSE_CHARACTERS = 300
"""How much of a response is embedded: its beginning says what it is about, and the rest costs most of the time."""
CHUNK = 512
"""Texts embedded between two reports of progress."""
_SILENT = Silent()


@dataclass(frozen=True)
class Slices:
    """The slices of a workspace."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Training records of each slice."""
    words: tuple[tuple[str, ...], ...]
    """Words that set each slice apart, best first."""
    prompts: tuple[tuple[str, ...], ...]
    """Three typical prompts of each slice."""
    centroids: np.ndarray  # (slices, dimension) float32, unit length
    labels: np.ndarray  # (records,) int64, in the order of records.parquet
    embeddings: np.ndarray  # (records, dimension) float32, unit length
    embedder: str
    digest: str
    """Of the names and of what every record's slice is."""
    embedder_digest: str = ""
    inputs: str = field(default="", repr=False)
    """Digest of records, embedder and settings; equal inputs are not sliced again."""
    source: str = field(default="", repr=False)
    """Digest of records and embedder, which the embeddings depend on."""
    records_sha256: str = field(default="", repr=False)
    fresh: bool = False
    """Whether this call made them; False when they were up to date."""

    @classmethod
    def load(cls, workspace: Workspace) -> Slices:
        """The slices that `slice_records` wrote.

        Raises WorkspaceError when they are missing, damaged, or of other records than the workspace holds now.
        """
        found = _stored(workspace)
        if found.records_sha256 != digest_file(workspace.require(workspace.records, "prepare")):
            raise WorkspaceError(f"{workspace.slices} belongs to other records: run `moe-router slice` again")
        return found


def slice_records(workspace: Workspace, config: Config, progress: Progress = _SILENT) -> Slices:
    """Embed all records, cluster the training ones, and put every other record with the nearest slice.

    Raises InputError, before anything but the embeddings is written, when there is too little data for `slice.k`.
    """
    settings = config.slice
    records_sha256 = digest_file(workspace.require(workspace.records, "prepare"))
    embedder = embedder_digest(settings.embedder)
    source = digest_json([FORMAT, records_sha256, settings.embedder, embedder])
    inputs = digest_json([source, asdict(settings)])
    done = _up_to_date(workspace, inputs)
    if done:
        return done
    records = load_records(workspace.records)
    _check_k(records, settings)
    embedded = _embed(workspace, records, settings.embedder, source, progress)
    progress.stage("slice", 1)
    made = cluster(records, *embedded, settings)
    origin = {"embedder_digest": embedder, "source": source, "inputs": inputs, "records_sha256": records_sha256}
    made = replace(made, **origin)
    _save(workspace, made)
    progress.advance(1)
    return replace(made, fresh=True)


def cluster(records: Sequence[Record], embeddings: np.ndarray, responses: np.ndarray, settings: SliceConfig) -> Slices:
    """Slices of records that are embedded already.

    *Shape:* embeddings (records, dimension) of the queries; responses (training records, dimension) of the answers.
    Raises InputError when a slice has fewer training records than `settings.min_records`.
    """
    train = np.array([record.split == "train" for record in records])
    kept = [record for record in records if record.split == "train"]
    own = balanced_kmeans(subjects(embeddings[train], responses, settings.k), settings)
    centers = centroids(embeddings[train], own, settings.k)
    labels = (embeddings @ centers.T).argmax(1).astype(np.int64)
    labels[train] = own
    words = distinguishing_words([record.prompt for record in kept], own, settings.k)
    names = slice_names(words)
    sizes = np.bincount(own, minlength=settings.k)
    _check_sizes(names, sizes, settings)
    return Slices(
        names=names,
        sizes=tuple(sizes.tolist()),
        words=words,
        prompts=typical_prompts([record.prompt for record in kept], embeddings[train], own, centers),
        centroids=centers,
        labels=labels,
        embeddings=embeddings,
        embedder=settings.embedder,
        digest=digest_json([names, [[r.id, label] for r, label in zip(records, labels.tolist(), strict=True)]]),
    )


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


def _check_k(records: Sequence[Record], settings: SliceConfig) -> None:
    count = sum(record.split == "train" for record in records)
    most = count // settings.min_records
    if most < 1:
        raise InputError(
            f"{count} training records are fewer than slice.min_records = {settings.min_records}: "
            "add data or lower slice.min_records"
        )
    if settings.k > most:
        raise InputError(
            f"slice.k = {settings.k} is too many for {count} training records with slice.min_records = "
            f"{settings.min_records}: lower slice.k to at most {most}, or lower slice.min_records"
        )


def _check_sizes(names: Sequence[str], sizes: np.ndarray, settings: SliceConfig) -> None:
    smallest = int(sizes.argmin())
    if sizes[smallest] < settings.min_records:
        raise InputError(
            f"slice {names[smallest]!r} has {sizes[smallest]} training records, fewer than slice.min_records = "
            f"{settings.min_records}: lower slice.k or slice.min_records"
        )


def _embed(
    workspace: Workspace, records: Sequence[Record], embedder: str, source: str, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of all queries and of the training responses, from the cache where it holds `source`."""
    try:
        cached = _read(workspace.embeddings, {"source": source})
        return cached["embeddings"], cached["responses"]
    except (WorkspaceError, KeyError):
        pass  # no cache, or not of these records: embedded again
    queries = [query_text(record.messages) for record in records]
    responses = [record.response[:RESPONSE_CHARACTERS] for record in records if record.split == "train"]
    texts = list(dict.fromkeys([*queries, *responses]))
    progress.stage("embed", len(texts))
    model = load_embedder(embedder)
    parts = []
    for start in range(0, len(texts), CHUNK):
        parts.append(model.encode(texts[start : start + CHUNK]))
        progress.advance(len(parts[-1]))
    place = {text: row for row, text in enumerate(texts)}
    found = np.concatenate(parts)
    pair = found[[place[text] for text in queries]], found[[place[text] for text in responses]]
    _write(workspace.embeddings, {"embeddings": pair[0], "responses": pair[1]}, {"source": source})
    return pair


_TENSORS = ("centroids", "labels", "embeddings", "fresh")


def _save(workspace: Workspace, slices: Slices) -> None:
    """Write the stage's files; each says what it was made of, so that files of two runs are never read as one."""
    tensors = {"centroids": slices.centroids, "labels": slices.labels}
    _write(workspace.assignments, tensors, {"inputs": slices.inputs})
    index = {item.name: getattr(slices, item.name) for item in fields(slices) if item.name not in _TENSORS}
    write_json(workspace.slices, {"format": FORMAT, **index})


def _stored(workspace: Workspace) -> Slices:
    index = read_json(workspace.require(workspace.slices, "slice"))
    try:
        if index.pop("format") != FORMAT:
            raise KeyError("format")
        assigned = _read(workspace.assignments, {"inputs": index["inputs"]})
        embedded = _read(workspace.embeddings, {"source": index["source"]})
        nested = {key: tuple(map(tuple, index[key])) for key in ("words", "prompts")}
        flat = {key: tuple(index[key]) for key in ("names", "sizes")}
        return Slices(**{**index, **nested, **flat, **assigned, "embeddings": embedded["embeddings"]})
    except (KeyError, TypeError, AttributeError) as error:
        raise WorkspaceError(f"{workspace.slices} is damaged: run `moe-router slice` again") from error


def _up_to_date(workspace: Workspace, inputs: str) -> Slices | None:
    """The earlier result, if it was made of the same inputs and its files are whole."""
    try:
        found = _stored(workspace)
    except WorkspaceError:
        return None
    return found if found.inputs == inputs else None


def _write(path: Path, tensors: dict[str, np.ndarray], note: dict[str, str]) -> None:
    from safetensors.numpy import save_file

    with atomic(path) as temporary:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, temporary, metadata=note)


def _read(path: Path, note: dict[str, str]) -> dict[str, np.ndarray]:
    """Tensors of a file that `_write` wrote with the same note."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            if file.metadata() != note:
                raise WorkspaceError(f"{path} is of another run than slices.json: run `moe-router slice` again")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise WorkspaceError(f"{path} is missing or damaged ({error}): run `moe-router slice` again") from error
