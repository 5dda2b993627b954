"""Trains the byte-level BPE tokenizer.

    python -m tools.embedded_base.tokenizer TEXT OUT [--vocabulary 8192] [--recipe FILE]

TEXT is a folder that `sources` wrote. OUT gets `tokenizer.json` and `tokenizer_config.json`, which transformers loads.
Text begins with the end-of-text token, as every document of the training does.
Digits stand alone, so that every number is spelt the same way, and each accented Latin letter has a token of its own
(the training text is English; users write Portuguese too).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tools.embedded_base.sources import END, RECIPE, load_recipe, read_documents

PAD = "<|pad|>"
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Contractions, words, single digits, runs of marks, white space."""
ACCENTED = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿœßÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝŒąćęłńśźżăâîșțčďěňřšťůžğışőűĄĆĘŁŃŚŹŻĂȘȚČĎĚŇŘŠŤŮŽĞİŞŐŰ"
SAMPLE = 12_000_000
"""Characters of each source that the merges are learned from."""


def train(text: Path, vocabulary: int, weights: dict[str, float]) -> Tokenizer:
    """A tokenizer of `vocabulary` entries: 0 ends a document, 1 pads, then 256 bytes and the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_samples(text, weights), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the files that `AutoTokenizer` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"}
    settings = kind | {"bos_token": END, "eos_token": END, "pad_token": PAD}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _samples(text: Path, weights: dict[str, float]) -> Iterator[str]:
    """Text of every source in proportion to its weight, and each accented letter often enough to be merged."""
    largest = max(weights.values())
    for name, weight in weights.items():
        left = SAMPLE * weight / largest
        for document in read_documents(next(text.glob(f"{name}.txt*"))):
            if left <= 0:
                break
            yield document[: int(left)]
            left -= len(document)
    yield from (letter for letter in ACCENTED for _ in range(2_000))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe)
    weights = {name: source["end"] for name, source in recipe["sources"].items()}
    save(train(options.text, options.vocabulary or recipe["tokenizer"]["vocabulary"], weights), options.out)


if __name__ == "__main__":
    main()
