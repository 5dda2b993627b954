"""The map of the slices: complete, self-contained, and readable without seeing colours."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from moe_router.data.clusters import centroids, unit
from moe_router.data.slice_map import HEIGHT, MOST, WIDTH, draw, project

NAMES = ("returns", "payroll", "laptops", "a-long-name-of-a-slice")


def made(slices, each=30):
    random = np.random.default_rng(0)
    labels = np.arange(slices * each) % slices
    points = unit(np.eye(12)[labels] + 0.05 * random.normal(size=(len(labels), 12)))
    return project(points, labels, centroids(points, labels, slices))


def test_slices_lie_apart_and_each_name_lies_with_its_own():
    found = made(4)
    near = np.linalg.norm(found.points[:, None] - found.centers, axis=2).argmin(1)
    assert (near == found.labels).mean() > 0.95
    assert 0.5 < found.shown <= 1


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_the_picture_is_whole_and_stands_alone(slices):
    drawn = draw(made(slices), NAMES[:slices], [30] * slices)
    root = ElementTree.fromstring(drawn)
    assert root.get("role") == "img"
    told = {element.get("id"): element.text for element in root if element.get("id")}
    assert set(root.get("aria-labelledby").split()) == set(told)
    assert all(name in told["slice-map-text"] for name in NAMES[:slices])
    assert "prefers-color-scheme:dark" in drawn
    assert not re.search(r"url\(|@import|<script|href", drawn)
    marks = [tuple(map(float, at.split())) for at in re.findall(r"translate\(([^)]*)\)", drawn)]
    assert len(marks) == 30 * slices + slices
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT + 100 for x, y in marks)
    assert sum(text.text in NAMES for text in root.iter("{http://www.w3.org/2000/svg}text")) == 2 * slices


def test_names_are_escaped_and_many_records_are_sampled():
    found = made(3, each=MOST)
    assert len(found.points) == MOST
    assert "a&lt;b&amp;c" in draw(found, ("a<b&c", "d", "e"), (1, 1, 1))
