"""Turns text into tokens.

    python -m tools.embedded_base.pack TEXT TOKENIZER OUT

For every `NAME.txt[.xz]` of TEXT, OUT gets `NAME.bin`: its documents as one run of uint16 token ids, each followed by the
end-of-text token. `NAME.heldout.txt` becomes `NAME.heldout.bin`. `bytes.json` counts the UTF-8 bytes behind each file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice, repeat
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tools.embedded_base.sources import END, read_documents

BATCH = 256


def tokens_of(documents: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """(tokens,) uint16, every document followed by end-of-text."""
    end = tokenizer.token_to_id(END)
    documents, parts = iter(documents), []
    while batch := list(islice(documents, BATCH)):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            parts.append(np.asarray([*encoding.ids, end], dtype=np.uint16))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)


def pack(path: Path, tokenizer: Path, out: Path) -> tuple[str, int, int]:
    """Packs one file; returns (name, bytes of text, tokens)."""
    documents = list(read_documents(path))
    tokens = tokens_of(documents, Tokenizer.from_file(str(tokenizer / "tokenizer.json")))
    name = path.name.removesuffix(".xz").removesuffix(".txt")
    tokens.tofile(out / f"{name}.bin")
    return name, sum(len(document.encode()) for document in documents), len(tokens)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    files = sorted(options.text.glob("*.txt*"), key=lambda path: -path.stat().st_size)
    with ProcessPoolExecutor() as pool:
        packed = list(pool.map(pack, files, repeat(options.tokenizer), repeat(options.out)))
    (options.out / "bytes.json").write_text(json.dumps({name: size for name, size, _ in packed}, indent=2))
    total = sum(count for name, _, count in packed if not name.endswith(".heldout"))
    ratio = sum(size for _, size, _ in packed) / sum(count for *_, count in packed)
    print(f"{total / 1e6:.1f} M training tokens, {ratio:.2f} bytes a token")


if __name__ == "__main__":
    main()
