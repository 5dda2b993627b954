"""Embeddings of a workspace's records, cached beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_router.data.cleaning.languages import UNKNOWN
from moe_router.data.embed import DEFAULT, load_embedder, query_text
from moe_router.data.records import Record
from moe_router.data.tensors import read_tensors, write_tensors
from moe_router.errors import WorkspaceError
from moe_router.progress import Progress
from moe_router.workspace import Workspace, read_json

RESPONSE_CHARACTERS = 300
"""How much of a response is embedded: its beginning says what it is about, and the rest costs most of the time."""
CHUNK = 512
"""Texts embedded between two reports of progress."""
MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
"""What is suggested for other languages than English: 50 languages, Apache-2.0, 384 dimensions like the default."""
FOREIGN = 0.2
"""Share of records in other languages from which it is suggested."""


def embed_records(
    workspace: Workspace, records: Sequence[Record], embedder: str, source: str, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of all queries and of the training responses, from the cache where it holds `source`.

    *Shape:* (records, dimension), (training records, dimension), float32.
    """
    try:
        cached = read_tensors(workspace.embeddings, {"source": source})
        return cached["embeddings"], cached["responses"]
    except (WorkspaceError, KeyError):
        pass  # no cache, or not of these records: embedded again
    queries = [query_text(record.messages) for record in records]
    responses = [record.response[:RESPONSE_CHARACTERS] for record in records if record.split == "train"]
    place: dict[str, int] = {}
    rows = [np.array([place.setdefault(text, len(place)) for text in side], np.int64) for side in (queries, responses)]
    texts = list(place)
    del place, queries, responses
    progress.stage("embed", len(texts))
    model = load_embedder(embedder)
    found = np.empty((len(texts), model.dimension), np.float32)
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        found[start : start + CHUNK] = model.encode(chunk)
        progress.advance(len(chunk))
    made = {"embeddings": found[rows[0]], "responses": found[rows[1]]}
    write_tensors(workspace.embeddings, made, {"source": source})
    return made["embeddings"], made["responses"]


def suggestion(workspace: Workspace, embedder: str) -> str:
    """A note that names a multilingual embedder, where the data asks for one and the English default is set."""
    if embedder != DEFAULT or not workspace.prepared.exists():
        return ""
    counts = dict(read_json(workspace.prepared)["findings"]["languages"])
    told = {name: count for name, count in counts.items() if name != UNKNOWN}
    others = {name: count for name, count in told.items() if name != "en"}
    if not others or sum(others.values()) < FOREIGN * sum(told.values()):
        return ""
    listed = ", ".join(f"{name} {count / sum(told.values()):.0%}" for name, count in list(others.items())[:3])
    return f"{DEFAULT} knows English; of these records {listed}: try --embedder {MULTILINGUAL} (downloaded when named)"
