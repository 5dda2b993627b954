"""Perplexity, its interval, and paired differences, against closed forms."""

import time

import numpy as np
import pytest

from moe_router.report import perplexity as measure
from moe_router.report.perplexity import bootstrap_interval, mean_interval, paired_difference, perplexity


def records(count=300, seed=0):
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 40, count)
    return tokens * random.normal(2.0, 0.3, count), tokens


def test_perplexity_sums_before_it_divides():
    nats, tokens = np.array([10.0, 1.0]), np.array([5, 20])
    assert perplexity(nats, tokens) == pytest.approx(np.exp(11 / 25))


def test_perplexity_of_parts_adds_up():
    nats, tokens = records()
    parts = [slice(0, 50), slice(50, 300)]
    logs = [np.log(perplexity(nats[part], tokens[part])) * tokens[part].sum() for part in parts]
    assert np.exp(sum(logs) / tokens.sum()) == pytest.approx(perplexity(nats, tokens))


def test_the_interval_is_the_normal_one_for_equal_token_counts():
    random = np.random.default_rng(1)
    nats = random.normal(2.0, 0.5, 400)
    low, high = bootstrap_interval(nats, np.ones(400), resamples=4000)
    error = 1.96 * nats.std() / 20
    assert np.log([low, high]) == pytest.approx([nats.mean() - error, nats.mean() + error], abs=0.005)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    hits = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        low, high = bootstrap_interval(random.normal(2.0, 0.5, 200), np.ones(200), resamples=400, seed=seed)
        hits += low <= np.exp(2.0) <= high
    assert 178 <= hits <= 199


def test_equal_records_leave_no_uncertainty():
    low, high = bootstrap_interval(np.full(10, 6.0), np.full(10, 3))
    assert low == high == pytest.approx(np.exp(2))


def test_a_constant_ratio_is_certain_in_pairs_though_each_arm_is_not():
    nats, tokens = records()
    found = paired_difference(nats + 0.1 * tokens, nats, tokens)
    assert found.relative == pytest.approx(np.expm1(0.1))
    assert found.ci95 == pytest.approx((np.expm1(0.1), np.expm1(0.1)))
    assert found.shown
    assert found.p == pytest.approx(2 / 1001)


def test_equal_arms_show_no_difference():
    nats, tokens = records()
    found = paired_difference(nats, nats, tokens)
    assert (found.relative, found.p, found.shown) == (0.0, 1.0, False)


def test_the_sign_follows_the_first_arm():
    nats, tokens = records()
    other = nats * np.random.default_rng(3).normal(1.1, 0.1, 300)
    one, two = paired_difference(nats, other, tokens), paired_difference(other, nats, tokens)
    assert one.relative < 0 < two.relative
    assert (1 + one.relative) * (1 + two.relative) == pytest.approx(1)
    assert one.p == two.p


def test_noise_alone_is_rarely_called_a_difference():
    called = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        nats = random.normal(2, 0.5, 100)
        called += paired_difference(nats + random.normal(0, 0.1, 100), nats, np.ones(100), 400, seed).shown
    assert called <= 22


def test_a_seed_repeats_and_blocks_make_no_difference_to_what_is_drawn(monkeypatch):
    nats, tokens = records()
    assert bootstrap_interval(nats, tokens, seed=4) == bootstrap_interval(nats, tokens, seed=4)
    whole = bootstrap_interval(nats, tokens, seed=4)
    monkeypatch.setattr(measure, "COUNTS_AT_ONCE", 3000)
    assert bootstrap_interval(nats, tokens, seed=4) == pytest.approx(whole)


def test_300_records_and_1000_resamples_take_little_time():
    nats, tokens = records()
    began = time.process_time()
    bootstrap_interval(nats, tokens)
    assert time.process_time() - began < 0.1


def test_a_mean_has_the_interval_of_its_perplexity():
    nats, tokens = records()
    assert np.exp(mean_interval(nats, tokens)) == pytest.approx(bootstrap_interval(nats, tokens), rel=1e-6)


def test_nothing_to_resample_is_refused():
    with pytest.raises(ValueError, match="at least one record"):
        bootstrap_interval(np.array([]), np.array([]))
