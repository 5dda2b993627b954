"""Builds the pretraining text: sources read, a share held out, sections rewritten as chats, own chats generated.

    python -m tools.embedded_base.sources FOLDER OUT [--recipe FILE] [--compress]

FOLDER holds text shards (`NAME*.txt`, also `.zst` or `.xz`), UTF-8, every document ended by a line `<|endoftext|>`.
OUT gets one `NAME.txt` (with `--compress`, `NAME.txt.xz`) a source and one `NAME.heldout.txt`.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.embedded_base.dialogues import facts, support
from tools.embedded_base.pairs import pairs

END = "<|endoftext|>"
RECIPE = Path(__file__).with_name("recipe.toml")
GENERATED = {"support": support, "facts": facts}
REWRITTEN = "pairs"


def load_recipe(path: Path = RECIPE) -> dict[str, Any]:
    """The recipe as plain dictionaries."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def read_documents(path: Path) -> Iterator[str]:
    """The documents of one shard, stripped, empty ones left out."""
    if path.suffix == ".zst":
        import pyarrow

        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            text = stream.read().decode("utf-8")
    elif path.suffix == ".xz":
        text = lzma.decompress(path.read_bytes()).decode("utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    for document in text.split(END):
        if document := document.strip():
            yield document


def held_out(document: str, share: float) -> bool:
    """Whether a document belongs to the evaluation text: decided by its hash, so by nothing else."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) < share * 2**64


def gather(folder: Path, recipe: dict[str, Any]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(source, training documents, held-out documents) of each source of the recipe; raises FileNotFoundError for a
    source without a shard. Rewritten chats come from training documents alone."""
    chats: list[str] = []
    for name, source in recipe["sources"].items():
        if name == REWRITTEN:
            continue
        if name in GENERATED:
            yield name, *_split(list(GENERATED[name](source["generated"], recipe["seed"])), recipe["holdout"])
            continue
        shards = [path for stem in source.get("files", [name]) for path in _shards(folder, stem)]
        if not shards:
            raise FileNotFoundError(f"{folder} holds no shard {name}*.txt[.zst|.xz]: add it or leave the source out")
        train, held = _split(list(_limited(shards, source.get("limit"))), recipe["holdout"])
        if source.get("pairs"):
            chats += (chat for document in train for chat in pairs(document, random.Random(document[:200])))
        yield name, train, held
    if REWRITTEN in recipe["sources"]:
        yield REWRITTEN, *_split(chats, recipe["holdout"])


def _shards(folder: Path, stem: str) -> list[Path]:
    """The shards of that name, one form of each where it lies there compressed as well."""
    return list({path.name.split(".")[0]: path for path in sorted(folder.glob(f"{stem}*.txt*"))}.values())


def _limited(shards: list[Path], limit: int | None) -> Iterator[str]:
    """Documents of all shards, each shard giving its share of the limit, evenly thinned."""
    documents = [list(read_documents(path)) for path in shards]
    total = sum(len(text) for shard in documents for text in shard)
    keep = 1.0 if limit is None else min(1.0, limit / max(total, 1))
    for shard in documents:
        yield from (text for i, text in enumerate(shard) if int((i + 1) * keep) > int(i * keep))


def _split(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    held = [held_out(document, share) for document in documents]
    return (
        [document for document, out in zip(documents, held, strict=True) if not out],
        [document for document, out in zip(documents, held, strict=True) if out],
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--compress", action="store_true")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, train, held in gather(options.folder, load_recipe(options.recipe)):
        text = f"\n{END}\n".join(train).encode()
        if options.compress:
            (options.out / f"{name}.txt.xz").write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
        else:
            (options.out / f"{name}.txt").write_bytes(text)
        (options.out / f"{name}.heldout.txt").write_text(f"\n{END}\n".join(held), encoding="utf-8")
        print(f"{name}: {len(train)} documents, {len(text) / 1e6:.1f} MB, {len(held)} held out", flush=True)


if __name__ == "__main__":
    main()
