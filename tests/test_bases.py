"""Every family of bases on tiny random models: layers found, NF4, training, saving, loading, generating, PEFT's logits."""

import shutil

import numpy as np
import pytest
import torch

from moe_router.config import BaseConfig, Config
from moe_router.data.records import Record
from moe_router.errors import BaseModelError, ConfigError, LibraryError
from moe_router.experts import bnb
from moe_router.experts.base import EMBEDDED_PATH, load_base
from moe_router.experts.export import export_adapter
from moe_router.experts.peft_format import peft_logits
from moe_router.experts.targets import restricted, targeted
from moe_router.experts.train import Plan, Split, train_library

VOCABULARY = 12_288
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "initializer_range": 0.1}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
FALCON = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def families():
    """Name → (configuration, names of the layers that get adapters)."""
    import transformers as t

    llama = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256, **COMMON}
    falcon = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False, "bias": False, **COMMON}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
    llama4 = {"intermediate_size": 64, "intermediate_size_mlp": 128, "head_dim": 16, "interleave_moe_layer_step": 2}
    return {
        "llama": (t.LlamaConfig(intermediate_size=128, **llama), ATTENTION | MLP),
        "falcon-7b": (t.FalconConfig(multi_query=True, parallel_attn=True, new_decoder_architecture=False, **falcon), FALCON),
        "falcon-new": (t.FalconConfig(new_decoder_architecture=True, num_kv_heads=2, **falcon), FALCON),
        "gpt-neox": (t.GPTNeoXConfig(intermediate_size=128, **llama), FALCON),
        "qwen3": (t.Qwen3Config(intermediate_size=128, num_key_value_heads=2, head_dim=16, **llama), ATTENTION | MLP),
        "qwen3-moe": (t.Qwen3MoeConfig(num_key_value_heads=2, head_dim=16, **experts, **llama), ATTENTION),
        "qwen2-moe": (
            t.Qwen2MoeConfig(num_key_value_heads=2, shared_expert_intermediate_size=64, **experts, **llama),
            ATTENTION,
        ),
        "llama4": (t.Llama4TextConfig(num_key_value_heads=2, num_local_experts=4, **llama4, **llama), ATTENTION),
        "phimoe": (t.PhimoeConfig(intermediate_size=64, num_key_value_heads=2, num_local_experts=4, **llama), ATTENTION),
        "mixtral": (t.MixtralConfig(intermediate_size=64, num_key_value_heads=2, num_local_experts=4, **llama), ATTENTION),
    }


DENSE = ["llama", "falcon-7b", "falcon-new", "gpt-neox", "qwen3"]
MIXTURES = ["qwen3-moe", "qwen2-moe", "llama4", "phimoe", "mixtral"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved random model of a family, made once."""
    from transformers import AutoModelForCausalLM

    made = {}

    def folder(family):
        if family not in made:
            torch.manual_seed(0)
            made[family] = tmp_path_factory.mktemp(family)
            AutoModelForCausalLM.from_config(families()[family][0]).save_pretrained(made[family])
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(EMBEDDED_PATH / name, made[family] / name)
        return made[family]

    return folder


def plan(folder, quantization, **settings):
    records = [Record(f"r{i}", f"question {i % 5} of {'bread' if i % 2 else 'boats'}?", f"answer {i % 3}") for i in range(24)]
    split = Split(records, np.arange(24) % 2, np.zeros((24, 2), np.float32))
    experts = {"rank": 4, "shared_rank": 4, "steps": 6, "search_rates": False, "learning_rate": 1e-2} | settings
    base = {"model": str(folder), "quantization": quantization, "dtype": "float32"}
    return Plan(("boats", "bread"), split, split, Config().override({"base": base, "experts": experts}), "data")


@pytest.mark.parametrize(
    ("family", "quantization"),
    [*((family, "nf4") for family in DENSE + MIXTURES), *((family, "none") for family in ["falcon-7b", *MIXTURES])],
)
def test_a_base_trains_saves_loads_and_generates(folders, tmp_path, family, quantization, monkeypatch):
    monkeypatch.setattr("moe_router.experts.base.RESIDENT_BYTES", 0)  # the 4-bit layers themselves
    wanted = plan(folders(family), quantization)
    base = load_base(wanted.config.base)
    linears = base.linears()
    assert {path.rpartition(".")[2] for path in linears} == families()[family][1]
    assert not [path for path in linears if "router" in path or "shared_expert" in path or path.endswith(".gate")]
    assert all(bnb.is_4bit(layer) == (quantization == "nf4") for layer in linears.values())
    library = train_library(tmp_path / "library", wanted, tmp_path / "run.safetensors", base=base)
    losses = library.cards["shared"]["losses"]
    assert losses[-1] < losses[0] - 0.5
    tokens = torch.arange(40, 60)[None]
    with torch.no_grad(), library.open(load_base(wanted.config.base)) as model:
        again = model.base
        plain = again.model(input_ids=tokens).logits
        with model.routed(model.route(np.array([[0.3, 0.7]], dtype=np.float32))):
            mixed = again.model(input_ids=tokens).logits
            made = again.model.generate(tokens, max_new_tokens=4, do_sample=False, use_cache=True)
    assert not torch.allclose(plain, mixed)
    assert made.shape == (1, 24) or int(made[0, -1]) == 0
    assert torch.isfinite(mixed).all()
    export_adapter(library, {"boats": 0.3, "bread": 0.7}, tmp_path / "adapter")
    theirs = peft_logits(load_base(wanted.config.base).model, tmp_path / "adapter", tokens)
    assert float((theirs - mixed).abs().max() / mixed.abs().max()) < 1e-3


def test_a_kept_4_bit_falcon_loads_in_a_new_process(folders, monkeypatch):
    """A process begins with Falcon's linear class being one of its own, which transformers would not make a 4-bit one."""
    from transformers.models.falcon import modeling_falcon

    monkeypatch.setattr("moe_router.experts.base.RESIDENT_BYTES", 0)
    config = BaseConfig(str(folders("falcon-7b")), "nf4", "float32")
    load_base(config)
    monkeypatch.setattr(modeling_falcon, "FalconLinear", type("FalconLinear", (torch.nn.Linear,), {}))
    assert all(map(bnb.is_4bit, load_base(config).linears().values()))


@pytest.mark.parametrize("family", ["falcon-7b", "gpt-neox", "qwen3-moe"])
def test_activations_can_be_recomputed(folders, tmp_path, family):
    results = []
    for saving in (False, True):
        wanted = plan(folders(family), "none", gradient_checkpointing=saving)
        library = train_library(tmp_path / str(saving), wanted, tmp_path / "run.safetensors")
        results.append(library.adapter("bread").factors)
    for path, (a, b) in results[0].items():
        torch.testing.assert_close(results[1][path][0], a, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(results[1][path][1], b, rtol=1e-3, atol=1e-4)


def test_a_mixture_of_experts_base_keeps_most_of_itself_unquantised(folders, monkeypatch):
    """Its own experts are 3-D parameters, which stay in the compute type and get no adapters."""
    monkeypatch.setattr("moe_router.experts.base.RESIDENT_BYTES", 0)
    base = load_base(BaseConfig(str(folders("qwen3-moe")), "nf4", "float32"))
    assert 0.5 < bnb.unquantised_share(base.model) < 1
    assert bnb.unquantised_share(base.model) > bnb.unquantised_share(
        load_base(BaseConfig(str(folders("qwen3")), "nf4", "float32")).model
    )


def test_a_base_whose_files_lack_weights_is_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folders("llama"), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(BaseConfig(str(broken), "none", "float32"))


@pytest.mark.parametrize(
    ("family", "targets", "count"),
    [
        ("llama", "all", 14),
        ("llama", "attention", 8),
        ("llama", "q_proj, v_proj", 4),
        ("falcon-7b", "attention", 4),
        ("gpt-neox", "dense", 2),
    ],
)
def test_targets_are_found_by_name(folders, family, targets, count):
    base = load_base(BaseConfig(str(folders(family)), "none", "float32"))
    assert len(targeted(base, targets).linears()) == count


def test_targets_that_are_not_there_are_named(folders):
    base = load_base(BaseConfig(str(folders("falcon-7b")), "none", "float32"))
    with pytest.raises(ConfigError, match=r"'q_proj'; there are .*query_key_value"):
        targeted(base, "q_proj")
    with pytest.raises(LibraryError, match=r"no linear layer model\.x"):
        restricted(base, ["model.x"])


def test_a_library_on_some_layers_opens_on_the_same(folders, tmp_path):
    wanted = plan(folders("llama"), "none", targets="q_proj,v_proj")
    library = train_library(tmp_path / "library", wanted, tmp_path / "run.safetensors")
    base = load_base(wanted.config.base)
    with library.open(base) as model:
        assert {path.rpartition(".")[2] for path in model.layers} == {"q_proj", "v_proj"}
    export_adapter(library, {"boats": 1.0}, tmp_path / "adapter")
    tokens = torch.arange(40, 60)[None]
    with torch.no_grad(), library.open(base) as model, model.routed(model.route(np.array([[1.0, 0.0]]))):
        ours = base.model(input_ids=tokens).logits
    torch.testing.assert_close(peft_logits(base.model, tmp_path / "adapter", tokens), ours, rtol=1e-3, atol=1e-3)
