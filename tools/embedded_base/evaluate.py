"""Compares bases on held-out text, in bits per byte (their tokenizers differ).

    python -m tools.embedded_base.evaluate TEXT MODEL… [--bytes 40000] [--quantization nf4|none]

TEXT is a folder that `sources` wrote; MODEL is a folder or `embedded`. Every model reads the same pieces of at most 1,200
bytes, cut between paragraphs, each from its own beginning-of-text token.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from moe_router.config import BaseConfig
from moe_router.experts.base import Base, load_base
from tools.embedded_base.sources import RECIPE, load_recipe, read_documents
from tools.embedded_base.train import NOT_MODERN

PIECE = 1_200
"""Bytes of a piece: within the context of every base that was compared."""


def pieces(documents: Iterator[str], limit: int) -> Iterator[str]:
    """Text of `limit` bytes in all, paragraphs joined while they fit into a piece."""
    for document in documents:
        piece = ""
        for paragraph in document.split("\n\n"):
            if len((piece + paragraph).encode()) > PIECE and piece:
                yield piece
                limit -= len(piece.encode())
                piece = ""
            if limit <= 0:
                return
            piece = f"{piece}\n\n{paragraph}" if piece else paragraph.encode()[:PIECE].decode(errors="ignore")
        if piece:
            yield piece
            limit -= len(piece.encode())


@torch.inference_mode()
def bits_per_byte(base: Base, texts: list[str], rows: int = 16) -> float:
    """Bits of all texts over their UTF-8 bytes; each is read after one beginning-of-text token."""
    ids = sorted(([base.eos, *base.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts), key=len)
    nats = 0.0
    for at in range(0, len(ids), rows):
        batch = ids[at : at + rows]
        longest = max(map(len, batch))
        tokens = torch.tensor([row + [base.eos] * (longest - len(row)) for row in batch])
        labels = torch.tensor([row[1:] + [-100] * (longest - len(row)) for row in batch])
        logits = base.model(input_ids=tokens[:, :-1].to(base.device), use_cache=False).logits.float()
        nats += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.to(base.device).flatten(), reduction="sum"
        ).item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--bytes", type=int, default=40_000, help="of each source")
    parser.add_argument("--quantization", default="nf4", choices=("nf4", "none"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    options = parser.parse_args(arguments)
    sources = [name for name in load_recipe(options.recipe)["sources"] if name not in NOT_MODERN]
    texts = {name: list(pieces(read_documents(options.text / f"{name}.heldout.txt"), options.bytes)) for name in sources}
    bases = [load_base(BaseConfig(model=model, quantization=options.quantization)) for model in options.models]
    print(" ".join(["source".ljust(16), *(Path(model).name[:16].rjust(16) for model in options.models)]))
    for name, found in [*texts.items(), ("all modern text", [text for own in texts.values() for text in own])]:
        figures = [bits_per_byte(base, found) for base in bases]
        print(
            " ".join([name.ljust(16), *(f"{figure:16.4f}" for figure in figures), f"{figures[-1] / figures[0] - 1:+8.1%}"]),
            flush=True,
        )


if __name__ == "__main__":
    main()
