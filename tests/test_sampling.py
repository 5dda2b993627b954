import numpy as np
import torch

from moe_router.config import GenerationConfig
from moe_router.inference.sampling import choose, nucleus

LOGITS = torch.tensor([[0.0, 5.0, 4.0, -3.0]])
UNIFORM = np.random.default_rng(0).random(4000).tolist()
GREEDY = GenerationConfig()


def drawn(settings, logits=LOGITS):
    return choose(logits.expand(len(UNIFORM), -1), [settings] * len(UNIFORM), UNIFORM)


def test_temperature_zero_takes_the_likeliest():
    assert set(drawn(GREEDY).tolist()) == {1}


def test_frequencies_follow_the_softmax():
    for temperature in (0.5, 1.0, 3.0):
        found = torch.bincount(drawn(GenerationConfig(temperature=temperature)), minlength=4) / len(UNIFORM)
        assert (found - torch.softmax(LOGITS[0] / temperature, 0)).abs().max() < 0.03


def test_nucleus_keeps_the_likeliest_tokens():
    assert set(drawn(GenerationConfig(temperature=1.0, top_p=0.9)).tolist()) == {1, 2}
    assert set(drawn(GenerationConfig(temperature=1.0, top_p=0.1)).tolist()) == {1}
    even = torch.full((1, 4), 0.25, dtype=torch.float64)
    assert nucleus(even, torch.tensor([[1.0]], dtype=torch.float64)).equal(even)


def test_a_row_gets_the_same_whatever_the_others_want():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    hot = GenerationConfig(temperature=1.2)
    alone = choose(logits[1:2], [hot], [0.37])
    for other in (GREEDY, GenerationConfig(temperature=0.3, top_p=0.5)):
        assert choose(logits, [other, hot, other], [0.9, 0.37, 0.1])[1] == alone[0]


def test_the_largest_number_stays_inside_the_vocabulary():
    assert choose(LOGITS, [GenerationConfig(temperature=1.0)], [1.0]).item() == 3
