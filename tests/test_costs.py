"""The cost formulas against torch's FLOP counter and against models that transformers builds."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moe_router.errors import BaseModelError
from moe_router.memory import LLAMA
from moe_router.report import costs
from moe_router.report.costs import ModelShape

ROWS, LENGTH, RANK = 2, 32, 8


def build(name, **more):
    import transformers

    sizes = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
    # eager: the counter does not see torch's fused CPU attention
    config = getattr(transformers, f"{name}Config")(**sizes, **more, attn_implementation="eager")
    model = getattr(transformers, f"{name}Model" if name == "Bert" else f"{name}ForCausalLM")(config)
    return model.eval()


MODELS = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "gpt-neox": ("GPTNeoX", {}),
    "gpt-neox-serial": ("GPTNeoX", {"use_parallel_residual": False}),
    "falcon": ("Falcon", {"multi_query": True, "alibi": False}),
    "falcon-grouped": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
    "phi3": ("Phi3", {"num_key_value_heads": 2, "pad_token_id": 0}),
    "starcoder2": ("Starcoder2", {"num_key_value_heads": 2}),
    "olmo2": ("Olmo2", {"num_key_value_heads": 4}),
}


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    name, more = MODELS[request.param]
    return build(name, **more)


def count(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def ids():
    return torch.randint(0, 500, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def test_forward_agrees_with_the_counter(model):
    with torch.no_grad():
        counted = count(lambda: model(input_ids=ids()))
    formula = costs.base_flops_per_token(ModelShape.from_model(model), context=LENGTH)
    assert formula * ROWS * LENGTH == pytest.approx(counted, rel=0.01)


def test_lora_training_agrees_with_the_counter(model):
    import copy

    from peft import LoraConfig, get_peft_model

    shape = ModelShape.from_model(model)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    counted = count(lambda: adapted(input_ids=ids(), labels=ids()).loss.backward())
    formula = costs.lora_training_flops_per_token(shape, LENGTH, RANK)
    assert formula * ROWS * LENGTH == pytest.approx(counted, rel=0.01)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert costs.adapter_params(shape.linears, RANK) == trained


def test_full_training_agrees_with_the_counter(model):
    import copy

    trained = copy.deepcopy(model).requires_grad_(True)
    counted = count(lambda: trained(input_ids=ids(), labels=ids()).loss.backward())
    formula = costs.full_training_flops_per_token(ModelShape.from_model(model), LENGTH)
    assert formula * ROWS * LENGTH == pytest.approx(counted, rel=0.01)


def test_adapters_add_what_the_formula_says(model):
    import copy

    from peft import LoraConfig, get_peft_model

    shape = ModelShape.from_model(model)
    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    ).eval()
    with torch.no_grad():
        added = count(lambda: adapted(input_ids=ids())) - count(lambda: model(input_ids=ids()))
    assert costs.adapter_flops_per_token(shape.linears, RANK) * ROWS * LENGTH == added


def test_a_decoded_token_agrees_with_the_counter(model):
    """One more token after LENGTH: its products with all keys and values so far, and its own."""
    with torch.no_grad():
        cache = model(input_ids=ids(), use_cache=True).past_key_values
        counted = count(lambda: model(input_ids=ids()[:, :1], past_key_values=cache, use_cache=True))
    formula = costs.base_flops_per_token(ModelShape.from_model(model), context=LENGTH + 1)
    assert formula * ROWS == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj", "o_proj"], ["o_proj", "down_proj"]])
def test_training_adapters_on_some_layers_agrees_with_the_counter(targets):
    from peft import LoraConfig, get_peft_model

    model = build("Llama", num_key_value_heads=2, tie_word_embeddings=False)
    shape = ModelShape.from_model(model)
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=targets, task_type="CAUSAL_LM"))
    sizes = [(m.in_features, m.out_features) for n, m in adapted.named_modules() if n.endswith(tuple(targets))]
    counted = count(lambda: adapted(input_ids=ids(), labels=ids()).loss.backward())
    formula = costs.lora_training_flops_per_token(shape, LENGTH, RANK, adapted=sizes)
    # where the first block's attention has no adapter, nothing goes back through it: the formula counts it all the same
    assert formula * ROWS * LENGTH == pytest.approx(counted, rel=0.01 if "q_proj" in targets else 0.06)


def routed(tmp_path, ranks=(RANK, RANK, RANK), shared=4):
    """The product's own layers on a base whose attention the counter sees."""
    from models import tiny_base

    from moe_router.experts.adapters import RankLayout, RoutedModel

    base = tiny_base(tmp_path)
    base.model.set_attn_implementation("eager")
    shape = ModelShape.from_model(base.model)
    layout = RankLayout(tuple(f"e{i}" for i in range(len(ranks))), ranks, shared)
    return base, shape, RoutedModel(base, layout, dict.fromkeys(layout.slots, 1.0))


@pytest.mark.parametrize("form", ["wide", "gathered"])
def test_the_product_s_own_layers_execute_what_the_formula_says(tmp_path, form):
    base, shape, model = routed(tmp_path)
    weights = np.array([[0.5, 0.5, 0], [0, 1, 0]], dtype=np.float32)
    with model, torch.no_grad(), model.routed(model.route(weights, np.ones(2), form)):
        counted = count(lambda: base.model(input_ids=ids()))
    active = costs.active_ranks(weights, np.ones(2), (RANK,) * 3, 4)
    rank = costs.executed_rank(active, 3 * RANK + 4, form)
    formula = costs.base_flops_per_token(shape, LENGTH) + costs.adapter_flops_per_token(shape.linears, rank)
    assert formula * ROWS * LENGTH == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_product_s_own_training_agrees_with_the_counter(tmp_path, recomputed):
    """A batch with a row of each of two experts, through the loss on response tokens alone, as the trainer does it."""
    from moe_router.experts.encode import IGNORE, Example, collate
    from moe_router.experts.recompute import recomputing
    from moe_router.experts.scoring import target_logits

    base, shape, model = routed(tmp_path, (RANK, RANK))
    for layer in model.layers.values():
        layer.A.requires_grad_(True)
        layer.B.requires_grad_(True)
    rows = [[Example(tuple(range(2, 2 + LENGTH)), LENGTH // 2)] for _ in range(2)]
    batch = collate(rows, base.eos, base.device)

    def work():
        with recomputing(base.model, recomputed), model.routed(model.route(np.eye(2, dtype=np.float32), np.ones(2))):
            logits = target_logits(base.model, batch)
            torch.nn.functional.cross_entropy(logits, batch.labels[batch.labels != IGNORE]).backward()

    with model:
        counted = count(work)
    formula = costs.lora_training_flops_per_token(shape, LENGTH, RANK + 4, 0.5, recomputed=recomputed)
    assert formula * 2 * LENGTH == pytest.approx(counted, rel=0.01)


def test_the_bytes_of_a_4bit_base_are_those_it_holds(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from moe_router.experts.bnb import nf4_config

    config = LlamaConfig(vocab_size=200, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=nf4_config(torch.bfloat16), device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    held = 0
    for parameter in model.parameters():
        held += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            held += state.absmax.nbytes + state.state2.absmax.nbytes
    assert costs.weight_bytes(ModelShape.from_model(model)) == pytest.approx(held, rel=0.01)


def test_the_encoder_agrees_with_the_counter():
    encoder = build("Bert")
    with torch.no_grad():
        counted = count(lambda: encoder(input_ids=ids()))
    assert costs.embedder_flops_per_query(ModelShape.from_model(encoder), LENGTH) * ROWS == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("key", ["llama", "llama-tied"])
def test_config_and_model_give_one_shape(key):
    name, more = MODELS[key]
    model = build(name, **more)
    shape = ModelShape.from_model(model)
    assert ModelShape.from_config(model.config) == shape
    assert shape.params == model.num_parameters()
    assert shape.gated


def test_a_plain_mlp_is_not_gated():
    assert not ModelShape.from_model(build("GPTNeoX")).gated


@pytest.mark.parametrize(("key", "heads"), [("falcon", 1), ("falcon-grouped", 2), ("qwen3", 2), ("gpt-neox", 4)])
def test_key_value_heads_are_found_under_any_name(key, heads):
    name, more = MODELS[key]
    assert ModelShape.from_model(build(name, **more)).kv_heads == heads


def test_the_probe_leaves_the_model_as_it_was():
    model = build("Llama")
    model.lm_head.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    ModelShape.from_model(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert not any(module._forward_hooks for module in model.modules())


def test_a_4bit_model_has_the_shape_of_its_plain_form(tmp_path):
    from models import tiny_base, tiny_llama
    from transformers import AutoModelForCausalLM

    from moe_router.experts.bnb import nf4_config

    plain = ModelShape.from_model(tiny_base(tmp_path / "plain").model)
    folder = tiny_llama(tmp_path / "packed")
    packed = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=nf4_config(torch.float32), device_map={"": "cpu"}, dtype=torch.float32
    )
    assert ModelShape.from_model(packed) == plain


def test_a_model_without_linear_layers_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(BaseModelError, match="no linear layers"):
        ModelShape.from_model(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50)))


def test_memory_agrees_with_doctors_arithmetic():
    from transformers import LlamaConfig

    seven = LLAMA[0]
    config = LlamaConfig(hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32)
    shape = ModelShape.from_config(config)
    assert costs.weight_bytes(shape) == pytest.approx(seven.weight_bytes, abs=1)
    assert costs.kv_bytes_per_token(shape) == seven.kv_bytes_per_token
    assert costs.adapter_params(shape.linears, 1) == seven.adapter_params_per_rank


def test_active_and_executed_ranks():
    weights = np.array([[0.7, 0.3, 0], [1, 0, 0], [0, 0, 0]], dtype=np.float32)
    active = costs.active_ranks(weights, np.array([1, 1, 0]), (8, 4, 16), shared_rank=2)
    assert active.tolist() == [14, 10, 0]
    assert costs.executed_rank(active, 30, "gathered") == 14
    assert costs.executed_rank(active, 30, "wide") == 30
    assert costs.executed_rank(active * 0, 30) == 0


def test_executed_rank_is_what_the_routed_model_multiplies(tmp_path):
    from models import tiny_base

    from moe_router.experts.adapters import RankLayout, RoutedModel

    base = tiny_base(tmp_path)
    for ranks, shared in (((4, 4), 4), ((4,) * 8, 4), ((2, 6, 3), 0)):
        layout = RankLayout(tuple(f"e{i}" for i in range(len(ranks))), ranks, shared)
        weights = np.zeros((2, len(ranks)), dtype=np.float32)
        weights[0, :2], weights[1, 0] = 0.5, 1
        active = costs.active_ranks(weights, np.ones(2), ranks, shared)
        with RoutedModel(base, layout, dict.fromkeys(layout.slots, 1.0)) as model:
            assert costs.executed_rank(active, layout.total) == model.route(weights).gates.shape[-1]


def test_memory_and_reading_add_up():
    assert costs.memory_bytes(100, held_params=10, kv_per_token=4, context=5) == 100 + 20 + 20
    assert costs.decode_bytes_per_token(100, used_params=3, kv_per_token=4, context=5) == 100 + 6 + 20


def test_costs_paid_once_are_spread():
    assert costs.gate_flops_per_query(384, 8, memory=100) == 2 * 384 * 108
    assert costs.amortised_flops_per_token(1200, 60) == 20


def test_logits_can_be_computed_for_a_share_of_positions():
    shape = ModelShape.from_model(build("Llama"))
    whole, none = (costs.lora_training_flops_per_token(shape, 16, 4, head_share=share) for share in (1, 0))
    assert whole - none == 2 * (2 * 64 * 500)
