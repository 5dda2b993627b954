"""Full fine-tuning, and LoRA on 16 bits: the baselines beside QLoRA."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_base
from test_trainer import JOBS, SCHEDULE, train

from moe_router.config import BaseConfig
from moe_router.errors import BaseModelError
from moe_router.experts.base import load_base
from moe_router.experts.full import full_finetune

JOB = replace(JOBS[1], learning_rate=3e-3, rows_per_step=2)


def test_every_weight_is_trained_and_the_model_is_a_base_again(tmp_path):
    base = tiny_base(tmp_path / "base")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    outcome = full_finetune(base, JOB, replace(SCHEDULE, epochs=6), tmp_path / "full")
    assert np.mean(outcome.losses[-5:]) < np.mean(outcome.losses[:5]) - 1
    assert outcome.steps == len(outcome.losses)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    again = load_base(BaseConfig(str(tmp_path / "full"), "none", "float32"))
    moved = {name for name, value in again.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in base.model.named_parameters()}
    tokens = torch.arange(40, 60)[None]
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=tokens).logits, base.model(input_ids=tokens).logits)


def test_saving_memory_changes_nothing(tmp_path):
    weights = []
    for saving in ({}, {"recompute": True, "micro_tokens": 24}):
        base = tiny_base(tmp_path / "base")
        full_finetune(base, JOB, replace(SCHEDULE, steps=5, **saving), tmp_path / f"full{len(weights)}")
        weights.append(torch.cat([p.flatten() for p in base.model.parameters()]))
    assert float((weights[0] - weights[1]).norm() / weights[0].norm()) < 1e-4


@pytest.mark.parametrize(("dtype", "quantization"), [("float32", "nf4"), ("float16", "none")])
def test_what_cannot_be_trained_is_refused(tmp_path, dtype, quantization):
    with pytest.raises(BaseModelError, match="quantization"):
        full_finetune(tiny_base(tmp_path, dtype, quantization), JOB, SCHEDULE, tmp_path / "full")


def test_lora_on_a_16_bit_base_is_the_same_trainer(tmp_path):
    base = tiny_base(tmp_path, "bfloat16", "none")
    assert all(layer.weight.dtype == torch.bfloat16 for layer in base.linears().values())
    _, trainer = train(base, JOBS, replace(SCHEDULE, epochs=6))
    losses = trainer.outcomes["b"].losses
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    assert all(parameter.dtype == torch.float32 for parameter in trainer.parameters["b"])
