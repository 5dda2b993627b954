"""The recipe of the embedded base, run at tiny size from text to a model that the package loads."""

import json
import random

import numpy as np
import pytest
import torch

from moe_router.config import BaseConfig
from moe_router.experts.base import load_base
from tools.embedded_base import export, pack, rounding, sources, tokenizer, train
from tools.embedded_base.batches import END, PER_ROW, boundaries
from tools.embedded_base.model import LEVELS, Nf4, document_attention
from tools.embedded_base.muon import Muon, orthogonalise
from tools.embedded_base.pairs import is_heading, pairs

DOCUMENT = """Return a product

You can return a product within thirty days when it is unused and still in its original box, with the receipt.

Create a label

Open the order, select the product, and print the label that appears. Put it on the box before the driver comes.
"""
TINY = """
seed = 0
holdout = 0.2
[tokenizer]
vocabulary = 600
[model]
architecture = "qwen3"
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 32
tie_word_embeddings = true
[train]
context = 64
rows = 4
steps = 12
warmup = 2
decay = 0.5
optimiser = "muon"
rate = 0.01
weight_decay = 0.1
mask_documents = true
quantise_from = 0.75
[sources.handbook]
licence = "own"
weight = 1.0
end = 0.5
pairs = true
[sources.pairs]
licence = "own"
weight = 0.2
end = 0.5
[sources.support]
licence = "own"
weight = 0.2
end = 0.5
generated = 30
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe")
    (root / "recipe.toml").write_text(TINY, encoding="utf-8")
    documents = [DOCUMENT.replace("thirty", str(n)).replace("product", f"product {n}") for n in range(60)]
    (root / "shards").mkdir()
    (root / "shards" / "handbook-000.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    recipe = ["--recipe", str(root / "recipe.toml")]
    sources.main([str(root / "shards"), str(root / "text"), *recipe])
    tokenizer.main([str(root / "text"), str(root / "tokenizer"), *recipe])
    pack.main([str(root / "text"), str(root / "tokenizer"), str(root / "data")])
    return root


def run(folder, out, *settings):
    train.main([str(folder / "data"), str(out), "--recipe", str(folder / "recipe.toml"), *settings])


def test_every_source_is_written_and_no_held_out_document_is_trained_on(folder):
    for name in ("handbook", "pairs", "support"):
        kept = set(sources.read_documents(folder / "text" / f"{name}.txt"))
        held = set(sources.read_documents(folder / "text" / f"{name}.heldout.txt"))
        assert kept
        assert held
        assert not kept & held


def test_sections_become_questions_and_answers():
    chats = list(pairs(DOCUMENT, random.Random(0)))
    assert any("thirty days" in chat and "return a product" in chat.lower() for chat in chats)
    assert not is_heading("It ends like a sentence.")


def test_accented_letters_are_single_tokens_and_digits_stand_alone(folder):
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    for letter in "ãçéõúÀñü":
        assert len(made.encode(letter, add_special_tokens=False).ids) == 1
    assert len(made.encode("1234", add_special_tokens=False).ids) == 4
    assert made.encode("Olá").ids[0] == END
    assert made.decode(made.encode("Não há promoções, só açaí às 9h.").ids) == "Não há promoções, só açaí às 9h."


def test_a_stopped_run_goes_on_to_the_same_weights(folder, tmp_path):
    run(folder, tmp_path / "whole")
    run(folder, tmp_path / "parts", "--minutes", "0")
    assert not (tmp_path / "parts" / "model").exists()
    run(folder, tmp_path / "parts")
    from safetensors.torch import load_file

    one, other = (load_file(tmp_path / part / "model" / "model.safetensors") for part in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["nf4"]["modern"] < 8


def test_rounding_and_export_make_a_base_that_loads(folder, tmp_path):
    run(folder, tmp_path / "run", "--set", "train.steps=3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "run" / "model" / name).write_bytes((folder / "tokenizer" / name).read_bytes())
    recipe = ["--recipe", str(folder / "recipe.toml"), "--tokens", "2048"]
    rounding.main([str(tmp_path / "run" / "model"), str(folder / "data"), str(tmp_path / "rounded"), *recipe])
    export.main([str(tmp_path / "rounded"), str(tmp_path / "base")])
    sums = json.loads((tmp_path / "base" / "sha256.json").read_text())
    assert {"config.json", "tokenizer.json"} <= set(sums)
    tokens = torch.arange(20, 50)[None]
    packed, plain = (load_base(BaseConfig(str(tmp_path / "base"), kind, "float32")) for kind in ("nf4", "none"))
    with torch.no_grad():
        one, other = (base.model(input_ids=tokens).logits for base in (packed, plain))
    assert (one - other).abs().max() < 0.05 * other.abs().max()


def test_rounding_keeps_outputs_closer_than_nearest_levels():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 128, generator=draw)
    inputs = torch.randn(512, 128, generator=draw) @ torch.randn(128, 128, generator=draw)
    nearest = Nf4(torch.device("cpu"))(weight)
    rounded = rounding.round_weight(weight, inputs.T.double() @ inputs.double())
    error, error_nearest = ((inputs @ (w - weight).T).square().mean() for w in (rounded, nearest))
    assert error < 0.5 * error_nearest
    torch.testing.assert_close(Nf4(torch.device("cpu"))(rounded), rounded, rtol=1e-2, atol=1e-3)


def test_nf4_takes_the_nearest_level_and_passes_the_gradient_through():
    weight = torch.linspace(-1, 1, 64).reshape(1, 64).requires_grad_()
    rounded = Nf4(torch.device("cpu"))(weight)
    levels = torch.tensor(LEVELS)
    assert torch.equal(rounded, levels[(weight.detach()[..., None] - levels).abs().argmin(-1)])
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_muon_takes_the_steps_of_torchs_own():
    torch.manual_seed(0)
    start, target = torch.randn(24, 40), torch.randn(24, 40)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    steppers = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for parameter, stepper in zip((ours, theirs), steppers, strict=True):
        for _ in range(5):
            stepper.zero_grad()
            (parameter - target).square().sum().backward()
            stepper.step()
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)
    spread = torch.linalg.svdvals(orthogonalise(torch.randn(1, 16, 16))[0].float())
    assert spread.min() > 0.3
    assert spread.max() < 1.6


def test_attention_stays_inside_documents():
    torch.manual_seed(0)
    tokens = np.full((2, 16), 5)
    tokens[0, 7] = tokens[1, 3] = END
    starts = torch.from_numpy(boundaries(tokens))
    assert starts.shape == (2 * PER_ROW + 1,)
    assert starts[:5].tolist() == [0, 7, 16, 19, 32]
    query, key, value = (torch.randn(2, heads, 16, 8) for heads in (4, 2, 2))
    whole, _ = document_attention(None, query, key, value, None, 1.0, starts=starts)
    alone, _ = document_attention(None, query[:1, :, 7:], key[:1, :, 7:], value[:1, :, 7:], None, 1.0)
    torch.testing.assert_close(whole[:1, 7:], alone)
