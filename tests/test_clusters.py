"""Balanced clustering: true groups found, no cluster over its capacity, the same result for a seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_router.config import SliceConfig
from moe_router.data import clusters
from moe_router.data.clusters import assign_with_capacity, averaged, balanced_kmeans, centroids, subjects, unit


def groups(sizes, seed=0, spread=0.05, dimension=16):
    """Unit vectors around one axis per group, and the group of each."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return unit(np.eye(dimension)[labels] + spread * random.normal(size=(len(labels), dimension))), labels


def same_partition(one, other):
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


def test_groups_of_fitting_size_are_found_exactly():
    points, truth = groups([30, 40, 50])
    assert same_partition(balanced_kmeans(points, SliceConfig(k=3)), truth)


@pytest.mark.parametrize("max_ratio", [1.0, 1.2, 2.0])
def test_no_cluster_is_over_its_capacity(max_ratio):
    points, _ = groups([100, 10, 10, 5])
    labels = balanced_kmeans(points, SliceConfig(k=4, max_ratio=max_ratio))
    assert np.bincount(labels).max() <= np.ceil(max_ratio * len(points) / 4)


def test_a_seed_decides():
    points, _ = groups([40, 40, 40], spread=0.6)
    first, again = (balanced_kmeans(points, SliceConfig(k=5, seed=3)) for _ in range(2))
    assert (first == again).all()


def test_one_cluster_holds_everything():
    points, _ = groups([7, 8])
    assert (balanced_kmeans(points, SliceConfig(k=1)) == 0).all()


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 9), st.integers(0, 1000))
@settings(deadline=None)
def test_capacity_holds_for_any_similarity(count, clusters, slack, seed):
    capacity = -(-count // clusters) + slack
    similarity = np.random.default_rng(seed).normal(size=(count, clusters))
    labels = assign_with_capacity(similarity, capacity)
    assert np.bincount(labels, minlength=clusters).max() <= capacity
    if capacity >= count:
        assert (labels == similarity.argmax(1)).all()


def test_points_with_most_to_lose_choose_first():
    similarity = np.array([[0.9, 0.8], [0.9, 0.1]])
    assert assign_with_capacity(similarity, 1).tolist() == [1, 0]


def test_what_all_texts_share_is_taken_out():
    points, truth = groups([40] * 7, seed=1, dimension=16)
    random = np.random.default_rng(2)
    wording = 3 * np.outer(random.choice([-1.0, 1.0], len(points)), np.eye(16)[15])  # two ways of asking, loud
    prompts = unit(points + wording)
    assert not same_partition(balanced_kmeans(prompts, SliceConfig(k=7)), truth)
    found = subjects(prompts, points, 7)
    assert same_partition(balanced_kmeans(found, SliceConfig(k=7)), truth)


def test_neighbours_agree_where_single_points_are_noisy():
    points, truth = groups([60] * 4, spread=0.35)
    near = averaged(points, 10)
    noise, left = ((1 - (some * centroids(some, truth, 4)[truth]).sum(1)).mean() for some in (points, near))
    assert left < 0.6 * noise
    assert np.allclose(np.linalg.norm(near, axis=1), 1, atol=1e-5)
    assert averaged(points, 1) is points


def test_more_points_than_k_means_sees_are_clustered_alike(monkeypatch):
    points, truth = groups([90, 100, 110])
    monkeypatch.setattr(clusters, "FITTED", 60)
    assert same_partition(balanced_kmeans(points, SliceConfig(k=3)), truth)


def test_few_clusters_keep_every_direction():
    points, truth = groups([30, 30])
    assert same_partition(balanced_kmeans(subjects(points, points, 2), SliceConfig(k=2)), truth)


def test_centroids_are_unit_vectors_and_zero_for_an_empty_cluster():
    points, truth = groups([5, 5])
    centers = centroids(points, truth, 3)
    assert np.allclose(np.linalg.norm(centers, axis=1), [1, 1, 0], atol=1e-6)
    assert (centers @ points.T)[0, :5].min() > 0.9


def test_what_every_text_says_alike_is_no_direction():
    points, _ = groups([30, 30])
    offset = unit(points + 5 * np.eye(16)[15])
    assert np.linalg.norm(subjects(offset, offset, 2).mean(0)) < 0.1
