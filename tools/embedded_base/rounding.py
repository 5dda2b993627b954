"""Rounds the trained weights onto the NF4 grid so that the layers' outputs, not the weights, stay close.

    python -m tools.embedded_base.rounding MODEL DATA OUT [--tokens 16384]

NF4 rounds every weight to the nearest of 16 levels. Here each column's rounding error is passed on to the columns still to
come, weighted by what the layer sees on training text (Frantar et al., "GPTQ", 2023). The result lies on the grid that
bitsandbytes finds again, so quantising it loses only what the second quantisation of the scales costs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.embedded_base.batches import Sources, boundaries
from tools.embedded_base.model import ATTENTION, BLOCK, LEVELS
from tools.embedded_base.sources import RECIPE, load_recipe

DAMPING = 0.01
"""Share of the mean diagonal that is added to the Hessian's."""


def round_weight(weight: Tensor, hessian: Tensor) -> Tensor:
    """(out, in) weight and (in, in) sum of outer products of its inputs -> weight on the NF4 grid, same shape.

    A block's scale is its largest magnitude when its turn comes; that weight keeps the outermost level, so that the scale
    can be found again from the rounded weights.
    """
    rows, columns = weight.shape
    work, out = weight.double().clone(), torch.zeros_like(weight, dtype=torch.double)
    hessian = hessian.double()
    hessian = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.double)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    levels = torch.tensor(LEVELS, dtype=torch.double)
    edges = (levels[1:] + levels[:-1]) / 2
    for column in range(columns):
        if column % BLOCK == 0:
            block = work[:, column : column + BLOCK]
            largest = block.abs().argmax(dim=1)
            signs = block[torch.arange(rows), largest].sign()
            scale = block.abs().amax(dim=1).bfloat16().double().clamp_min(1e-12)
        value = levels[torch.bucketize(work[:, column] / scale, edges)] * scale
        out[:, column] = torch.where(largest == column % BLOCK, signs * scale, value)
        error = (work[:, column] - out[:, column]) / inverse[column, column]
        work[:, column:] -= error[:, None] * inverse[column, column:]
    return out.to(weight.dtype)


@torch.no_grad()
def round_model(model: nn.Module, tokens: Tensor, starts: Tensor) -> None:
    """Rounds every linear layer below the head in place, one decoder layer after the other, each seeing rounded inputs."""
    layers = model.get_decoder().layers
    for number, layer in enumerate(layers, 1):
        linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        for group in _by_input(layer, linears, model, tokens, starts):
            hessian, members = group
            for linear in members:
                linear.weight.copy_(round_weight(linear.weight, hessian))
        print(f"layer {number} of {len(layers)}", flush=True)


def _by_input(layer: nn.Module, linears: list[nn.Linear], model: nn.Module, tokens: Tensor, starts: Tensor):
    """(Hessian, the linear layers that read these inputs), in the order in which the layer runs them."""
    done: set[int] = set()
    while len(done) < len(linears):
        order: list[tuple[nn.Linear, Tensor]] = []

        def keep(module: nn.Linear, inputs: tuple[Tensor], order: list[tuple[nn.Linear, Tensor]] = order) -> None:
            order.append((module, inputs[0]))

        hooks = [module.register_forward_pre_hook(keep) for module in linears if id(module) not in done]
        model.get_decoder()(input_ids=tokens, use_cache=False, starts=starts)
        for hook in hooks:
            hook.remove()
        inputs = order[0][1]
        members = [module for module, seen in order if seen is inputs]
        flat = inputs.flatten(0, -2).double()
        done |= {id(module) for module in members}
        yield flat.T @ flat, members


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation=ATTENTION).eval()
    ends = {name: source["end"] for name, source in recipe["sources"].items()}
    context = 512
    rows = Sources(options.data, ends, ends).rows(recipe["seed"] + 1, 0, options.tokens // context, context - 1, 0.0)
    round_model(model, torch.from_numpy(rows), torch.from_numpy(boundaries(rows)))
    model.to(torch.bfloat16).save_pretrained(options.out)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(options.out)


if __name__ == "__main__":
    main()
