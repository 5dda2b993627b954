"""Where the names of points go, so that none covers another name, a point, or an interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GAP = 3.0
"""Between a name and what it stands beside, in the caller's unit (points of type suit)."""
REACHES = (16, 24, 34, 46, 60, 76, 94)
ANGLES = (0, 180, 35, -35, 145, -145, 60, -60, 120, -120, 90, -90)
"""Directions in degrees, to the right first, as one reads."""
PASSES = 4
COVERED, OUTSIDE, CROSSING, STRAY = 10.0, 20.0, 200.0, 150.0
"""What makes a place bad: each unit of area covered, each outside the frame, each thing a leader line runs across, and
each other point to which a name without a leader would seem to belong."""
REACH = 14
"""Names within this distance above or below an interval seem to belong to it."""
STACK = 3
"""Names above one another over points that share a column."""


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area shared with another rectangle."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)

    def nearest(self, point: Point) -> Point:
        """The place in the box that is nearest to `point`."""
        return min(max(point[0], self.left), self.right), min(max(point[1], self.bottom), self.top)

    def stretched(self, by: float) -> Box:
        """Taller by `by` at both ends."""
        return Box(self.left, self.bottom - by, self.right, self.top + by)

    def grown(self, by: float) -> Box:
        return Box(self.left - by, self.bottom - by, self.right + by, self.top + by)


Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A point with its interval, and the size of its name."""

    at: Point
    body: Box
    width: float
    height: float


@dataclass(frozen=True)
class Place:
    """Where a name goes."""

    box: Box
    leader: bool
    """Whether it stands so far off that a line has to join it to its point."""
    dislike: float


def place(marks: Sequence[Mark], frame: Box) -> list[Place]:
    """A place for each name inside `frame`: beside its point, above or below its interval, or further off with a leader.

    Every name in turn takes the place that is least bad given the others, until they settle; of several orders in which
    to go round, the best outcome is kept.
    """
    options = [list(_options(mark, _column(mark, marks))) for mark in marks]
    across = sorted(range(len(marks)), key=lambda i: marks[i].at)
    upwards = sorted(range(len(marks)), key=lambda i: marks[i].at[::-1])
    outcomes = [_settle(marks, options, frame, order) for order in (across, across[::-1], upwards, upwards[::-1])]
    return min(outcomes, key=lambda outcome: outcome[0])[1]


def _settle(
    marks: Sequence[Mark], options: Sequence[Sequence[Place]], frame: Box, order: Sequence[int]
) -> tuple[float, list[Place]]:
    found: dict[int, Place] = {}
    costs: dict[int, float] = {}
    for _ in range(PASSES):
        before = dict(found)
        for index in order:
            others = [m for i, m in enumerate(marks) if i != index]
            names = [p.box for i, p in found.items() if i != index]
            costs[index], found[index] = _least_bad(options[index], marks[index], others, names, frame)
        if found == before:
            break
    return sum(costs.values()), [found[index] for index in range(len(marks))]


def _column(mark: Mark, marks: Sequence[Mark]) -> Box:
    """The intervals that run into this one on the same vertical, as one box."""
    bodies = [m.body for m in marks if _same_column(m, mark)]
    low = min(b.left for b in bodies), min(b.bottom for b in bodies)
    return Box(*low, max(b.right for b in bodies), max(b.top for b in bodies))


def _same_column(one: Mark, two: Mark) -> bool:
    return abs(one.at[0] - two.at[0]) < GAP and one.body.overlap(two.body) > 0


def _options(mark: Mark, column: Box) -> Iterator[Place]:
    """Places around a point, the preferred ones first: beside it, above or below its column, further off with a leader."""
    (x, y), body, width = mark.at, mark.body, mark.width
    sides = (body.right + GAP + width / 2, body.left - GAP - width / 2)
    for dislike, lift in ((0, 0), (4, 8), (4, -8)):
        for side, middle in enumerate(sides):
            yield Place(_box(mark, middle, y + lift), False, dislike + 3 * side)
    for level in range(STACK):
        away = GAP + mark.height / 2 + level * (mark.height + 1)
        for dislike, middle in ((5, x), (6, x + width / 2 - 6), (6, x - width / 2 + 6)):
            yield Place(_box(mark, middle, column.top + away), False, dislike + 6 * level)
            yield Place(_box(mark, middle, column.bottom - away), False, dislike + 6 * level)
    for reach in REACHES:
        for angle in ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            beside = 0 if abs(angle) == 90 else math.copysign(width / 2, across)
            yield Place(_box(mark, x + reach * across + beside, y + reach * up), True, 20 + reach)


def _box(mark: Mark, x: float, y: float) -> Box:
    return Box(x - mark.width / 2, y - mark.height / 2, x + mark.width / 2, y + mark.height / 2)


def _least_bad(
    options: Sequence[Place], mark: Mark, others: Sequence[Mark], names: Sequence[Box], frame: Box
) -> tuple[float, Place]:
    """The first place of lowest cost given the other points and the names placed so far, and that cost."""
    rest = [*(other.body for other in others), *names]
    aside = [other.body.stretched(REACH) for other in others if not _same_column(mark, other)]
    apart = [other for other in rest if other.overlap(mark.body) == 0]
    best, chosen = math.inf, options[0]
    for option in options:
        cost = option.dislike + OUTSIDE * (option.box.area - option.box.overlap(frame))
        if cost >= best:  # most places end here
            continue
        around = option.box.grown(1)
        cost += COVERED * sum(around.overlap(other) for other in (*rest, mark.body))
        if option.leader and cost < best:
            end = option.box.nearest(mark.at)
            cost += CROSSING * sum(crosses(mark.at, end, other) for other in apart)
        elif not option.leader:
            cost += STRAY * sum(option.box.overlap(other) > 0 for other in aside)
        if cost < best:
            best, chosen = cost, option
    return best, chosen


def crosses(start: Point, end: Point, box: Box) -> bool:
    """Whether the straight line from `start` to `end` touches the box (Liang and Barsky 1984)."""
    enter, leave = 0.0, 1.0
    for a, b, low, high in ((start[0], end[0], box.left, box.right), (start[1], end[1], box.bottom, box.top)):
        if a == b:
            if not low <= a <= high:
                return False
            continue
        near, far = sorted(((low - a) / (b - a), (high - a) / (b - a)))
        enter, leave = max(enter, near), min(leave, far)
    return enter <= leave
