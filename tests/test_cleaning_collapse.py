"""The model-collapse guard: answers that loop, and stretches without variety."""

import random

from moe_router.data.cleaning.collapse import STRETCH, Diversity, repeats_itself


def varied(rng, count):
    return " ".join(f"palavra{rng.randrange(3000)}" for _ in range(count))


def test_an_answer_that_loops_is_seen():
    assert repeats_itself("please contact our support team today " * 8)
    assert repeats_itself("por favor, contacte a nossa equipa de apoio. " * 8)


def test_short_and_varied_answers_are_not():
    rng = random.Random(0)
    assert not repeats_itself("yes yes yes yes yes yes")
    assert not repeats_itself(varied(rng, 300))
    assert not repeats_itself("")


def test_a_stretch_far_below_the_rest_is_named():
    rng = random.Random(0)
    diversity = Diversity()
    for line in range(1, 200):
        looping = 100 <= line < 160
        diversity.add("chat.txt", line, " ".join(["o mesmo texto outra vez"] * 20) if looping else varied(rng, 100))
    fallen = diversity.fallen()
    assert fallen
    for stretch in fallen:
        assert stretch.file == "chat.txt"
        assert 80 <= stretch.first <= stretch.last <= 160
        assert stretch.distinct < 0.6 * diversity.reference


def test_even_sources_are_not_named():
    rng = random.Random(0)
    diversity = Diversity()
    assert diversity.reference == 1.0
    for file in ("a", "b"):
        for line in range(3 * STRETCH // 100):
            diversity.add(file, line, varied(rng, 100))
    assert len(diversity.stretches) == 6
    assert diversity.fallen() == []
