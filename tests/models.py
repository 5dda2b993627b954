"""Tiny real models for tests: stock transformers architectures with random weights, and the embedded tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from moe_router.config import BaseConfig
from moe_router.experts.base import EMBEDDED_PATH, Base, load_base


def tiny_llama(folder: Path, hidden: int = 64, seed: int = 0) -> Path:
    """Save a two-layer Llama of random weights that load_base can open."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=json.loads((EMBEDDED_PATH / "config.json").read_text())["vocab_size"],
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED_PATH / name, folder / name)
    return folder


def tiny_base(folder: Path, dtype: str = "float32", quantization: str = "none", seed: int = 0) -> Base:
    """A loaded tiny Llama."""
    return load_base(BaseConfig(str(tiny_llama(folder, seed=seed)), quantization, dtype))
