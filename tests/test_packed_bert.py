"""The packed forward pass gives sentence-transformers' own vectors, and leaves other models alone."""

import numpy as np
import pytest

from moe_router.data.embed import SentenceEmbedder, load_embedder
from moe_router.data.packed_bert import PackedBert, fits

TEXTS = [
    "How many days do I have to return a rug?",
    "",
    " \n ",
    "请问发票什么时候付款？",
    "Quem trata da fatura?",
    "contract clause " * 400,
    *(f"{'long ' * (i % 9)}question {i}" for i in range(90)),
]


@pytest.fixture(scope="module")
def model():
    return load_embedder()._model


def tiny(folder, pooling="mean", **changes):
    """A sentence-transformers model of random weights."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "return", "a", "rug", "payroll", "day")
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **size, **changes)).save_pretrained(folder / "bert")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    return SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(16, pooling)], device="cpu")


def stock(model, texts):
    return model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def test_vectors_are_those_of_sentence_transformers(model):
    assert fits(model)
    found = PackedBert(model).encode(TEXTS)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 384)
    assert found == pytest.approx(stock(model, TEXTS), abs=1e-5)


def test_a_text_alone_and_among_longer_ones(model):
    packed = PackedBert(model)
    alone = np.concatenate([packed.encode([text]) for text in TEXTS[:8]])
    assert alone == pytest.approx(packed.encode(TEXTS)[:8], abs=1e-5)


def test_a_model_without_normalisation_and_of_other_sizes(tmp_path):
    made = tiny(tmp_path)
    texts = ["a rug", "return a rug a day", "payroll " * 100]
    assert fits(made)
    assert PackedBert(made).encode(texts) == pytest.approx(stock(made, texts), abs=1e-5)


@pytest.mark.parametrize(
    "other", [{"pooling": "cls"}, {"pooling": "max"}, {"hidden_act": "relu"}, {"is_decoder": True}], ids=str
)
def test_other_models_go_the_stock_way(tmp_path, other):
    made = tiny(tmp_path, **other)
    assert not fits(made)
    found = SentenceEmbedder(made, "tiny", "d").encode(["a rug", "return a rug"])
    assert found == pytest.approx(stock(made, ["a rug", "return a rug"]), abs=1e-6)


def test_half_precision_goes_the_stock_way(tmp_path):
    assert not fits(tiny(tmp_path).bfloat16())
