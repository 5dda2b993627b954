"""Puts a trained base where the package loads it from.

    python -m tools.embedded_base.export MODEL [OUT]

Writes bfloat16 shards of at most 16 MiB, the tokenizer, and `sha256.json`, which loading checks; old shards are removed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = Path(__file__).parents[2] / "moe_router" / "embedded_base"
SHARD = "16MB"
LARGEST = 40 << 20
"""Bytes that the weights may take in the wheel."""


def export(model: Path, out: Path) -> None:
    """Raises ValueError when the weights are too large for the package."""
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    if (size := weights.num_parameters() * 2) > LARGEST:
        raise ValueError(f"{model} takes {size / 2**20:.1f} MiB, the package has room for {LARGEST >> 20}")
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("*.safetensors*"), out / "sha256.json"]:
        old.unlink(missing_ok=True)
    weights.save_pretrained(out, max_shard_size=SHARD)
    (out / "generation_config.json").unlink(missing_ok=True)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)
    kept = sorted(path for path in out.iterdir() if path.suffix in (".json", ".safetensors") and path.name != "sha256.json")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    (out / "sha256.json").write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=PACKAGE)
    options = parser.parse_args(arguments)
    export(options.model, options.out)


if __name__ == "__main__":
    main()
