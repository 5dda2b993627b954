"""The fit learns what was measured, and falls back on the slices where little was."""

import numpy as np
import pytest
from gate_world import EXPERTS, World, centroids

from moe_router.gate.baselines import best_fixed, cbtm, cluster_label, nearest_neighbours, oracle, random_gate, shuffled
from moe_router.gate.features import Memory
from moe_router.gate.fit import Measured, fit_gate, plainest


@pytest.fixture(scope="module")
def world():
    world = World()
    return {name: world.draw(n) for name, n in {"train": 600, "gate": 300, "tune": 150, "test": 1000}.items()}


@pytest.fixture(scope="module")
def fitted(world):
    return fit_gate(remembered(world["train"]), world["gate"].measured, world["tune"].measured)


def remembered(queries, owners=None):
    return Memory.of(queries.embeddings, queries.slices if owners is None else owners, 0)


def top1(fit, measured):
    return measured.nats_per_token(np.eye(len(fit.bias))[fit.logits(measured.embeddings).argmax(1)])


def test_beats_the_gates_that_only_know_the_slices(world, fitted):
    test = world["test"].measured
    train = world["train"]
    rivals = {
        "cbtm": cbtm(test.embeddings, centroids(train), 0.05, 1),
        "cluster label": np.eye(EXPERTS)[cluster_label(test.embeddings, train.embeddings, train.slices, EXPERTS).argmax(1)],
        "best fixed": best_fixed(world["test"].slices, world["gate"].measured.nats, world["gate"].slices),
    }
    best = test.nats_per_token(np.eye(EXPERTS)[world["test"].best])
    for name, weights in rivals.items():
        gain = test.nats_per_token(weights) - best
        assert top1(fitted, test) - best < 0.5 * gain, name


def test_baselines_are_ordered_as_what_they_know(world):
    test, train = world["test"].measured, world["train"]
    blind = test.nats_per_token(random_gate(len(test.tokens), EXPERTS, 0))
    knowing = nearest_neighbours(test.embeddings, train.embeddings, train.slices, EXPERTS)
    assert test.nats_per_token(oracle(test.nats)) < test.nats_per_token(knowing) < blind
    dealt = shuffled(knowing, 0)
    assert dealt.sum(0) == pytest.approx(knowing.sum(0))
    assert test.nats_per_token(dealt) == pytest.approx(blind, rel=0.05)


def test_few_measured_records_do_not_undo_the_slices(world):
    train, test = world["train"], world["test"].measured
    few = world["gate"].measured.only(np.arange(12))
    noise = Measured(few.embeddings, np.random.default_rng(1).permuted(few.nats, axis=1), few.tokens)
    fit = fit_gate(remembered(train), noise, world["tune"].measured)
    own = test.nats_per_token(np.eye(EXPERTS)[world["test"].slices])
    assert top1(fit, test) < own * 1.02


def test_renaming_the_experts_renames_the_gate(world, fitted):
    order = np.random.default_rng(0).permutation(EXPERTS)
    back = np.argsort(order)

    def renamed(measured):
        return Measured(measured.embeddings, measured.nats[:, order], measured.tokens)

    other = fit_gate(
        remembered(world["train"], back[world["train"].slices]),
        renamed(world["gate"].measured),
        renamed(world["tune"].measured),
    )
    x = world["test"].embeddings
    first, second = fitted.logits(x), other.logits(x)
    assert (order[second.argmax(1)] == first.argmax(1)).mean() > 0.99


def test_is_deterministic_and_records_its_search(world, fitted):
    again = fit_gate(remembered(world["train"]), world["gate"].measured, world["tune"].measured)
    assert (again.weight == fitted.weight).all()
    assert fitted.chosen in fitted.tried
    assert fitted.chosen["top1"] < 1.02 * min(t["top1"] for t in fitted.tried)


def test_the_plainest_setting_wins_unless_another_is_clearly_better():
    random = np.random.default_rng(0)
    plain, noise = random.normal(2, 1, size=200), random.normal(0, 0.5, size=200)
    assert plainest([plain, plain + noise - noise.mean() - 0.01]) == 0
    assert plainest([plain, plain + noise - noise.mean() - 0.3]) == 1


@pytest.mark.parametrize("experts", [1, 2])
def test_one_or_two_experts(world, experts):
    def first(queries):
        return Measured(queries.embeddings, queries.measured.nats[:, :experts], queries.measured.tokens)

    fit = fit_gate(remembered(world["train"], world["train"].slices % experts), first(world["gate"]), first(world["tune"]))
    assert np.isfinite(fit.weight).all() and fit.weight.shape == (experts, world["train"].embeddings.shape[1])


def test_an_expert_without_training_records_is_never_the_evidence(world):
    train = world["train"]
    kept = train.slices != 3
    memory = Memory.of(train.embeddings[kept], train.slices[kept], 0)
    assert 3 not in memory.read(world["test"].embeddings, EXPERTS).evidence.argmax(1)
    assert np.isfinite(fit_gate(memory, world["gate"].measured, world["tune"].measured).weight).all()


def test_pockets_smaller_than_a_slice_are_told_apart_by_the_memory():
    """Many small groups of queries, each owned by an expert at random: no linear map or centroid can hold them."""
    random = np.random.default_rng(0)
    pockets = random.normal(size=(200, 24))
    owner = random.integers(EXPERTS, size=len(pockets))

    def draw(count):
        which = random.integers(len(pockets), size=count)
        x = pockets[which] + 0.15 * random.normal(size=(count, 24))
        nats = np.where(np.eye(EXPERTS, dtype=bool)[owner[which]], 1.0, 3.0)
        return Measured((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), nats, np.ones(count)), owner[which]

    train, slices = draw(1500)
    (gate, _), (tune, _), (test, best) = draw(150), draw(100), draw(500)
    fit = fit_gate(Memory.of(train.embeddings, slices, 0), gate, tune)
    linear = cluster_label(test.embeddings, train.embeddings, slices, EXPERTS).argmax(1)
    assert (fit.logits(test.embeddings).argmax(1) == best).mean() > 0.95 > (linear == best).mean() + 0.2
