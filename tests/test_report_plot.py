"""The figures: the same each time, of a useful size, and no name on top of another."""

import pytest
from report_fake import NOW, fake

from moe_router.report import labels, plot
from moe_router.report.arms import ARMS
from moe_router.report.figures import FIGURES
from moe_router.report.style import save_figure
from moe_router.report.words import level


@pytest.fixture(scope="module")
def report():
    return fake()


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_is_the_same_each_time(report, figure, tmp_path):
    for form in ("png", "svg"):
        for name in ("one", "two"):
            save_figure(figure.draw(report), tmp_path / f"{name}.{form}")
        assert (tmp_path / f"one.{form}").read_bytes() == (tmp_path / f"two.{form}").read_bytes()


def test_the_figure_opens_as_an_image_of_a_useful_size(report, tmp_path):
    from matplotlib.image import imread

    save_figure(plot.draw(report.arms), tmp_path / "figure.png")
    height, width = imread(tmp_path / "figure.png").shape[:2]
    assert (width, height) == (1376, 928)


@pytest.mark.parametrize("names", [NOW, tuple(ARMS)], ids=["now", "all"])
@pytest.mark.parametrize("seed", range(2))
def test_no_label_covers_another_or_leaves_the_figure(names, seed):
    report = fake(names, seed)
    figure = plot.draw(report.arms)
    shown = {f"{arm.label}  {level(arm.perplexity)}" for arm in report.arms}
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts if text.get_text() in shown]
        shown -= {text.get_text() for text in axis.texts}
        for index, box in enumerate(boxes):
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.width
            assert not any(box.overlaps(other) for other in boxes[:index])
    assert not shown


@pytest.mark.parametrize("figure", FIGURES[1:], ids=lambda figure: figure.name)
def test_text_stays_inside_every_figure(report, figure):
    drawing = figure.draw(report)
    drawing.draw_without_rendering()
    texts = [text for axis in drawing.axes for text in axis.get_yticklabels() + axis.texts]
    texts += [axis.xaxis.label for axis in drawing.axes] + drawing.texts
    for text in texts:
        if text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0, text
            assert box.x1 <= drawing.bbox.width and box.y1 <= drawing.bbox.height, text


def test_a_figure_without_its_numbers_is_not_offered():
    few = fake(("base", "gate_top2"))
    assert [figure.name for figure in FIGURES if figure.has(few)] == [
        "perplexity-flops",
        "experts-slices",
        "routes",
        "confusion",
        "confidence",
    ]


def test_the_axis_breaks_for_a_far_base_only():
    far, near = plot.split(fake().arms)
    assert [arm.id for arm in far] == ["base"]
    assert len(near) == len(NOW) - 1
    assert plot.split(near)[0] == []
    assert plot.split([*far, *near[:1]])[0] == []


def test_one_arm_alone_can_be_drawn(tmp_path):
    save_figure(plot.draw(fake(("base", "gate_top2")).arms[:1]), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("end", "expected"), [((10, 10), True), ((10, 0), False), ((0, 10), False), ((2, 2), False), ((5, 3), True)]
)
def test_lines_cross_boxes(end, expected):
    assert labels.crosses((0, 0), end, labels.Box(4, 2, 6, 6)) is expected


def test_names_on_the_map_do_not_cover_each_other():
    from moe_router.report.arms import SliceMap
    from moe_router.report.maps import draw_map

    names = tuple(f"slice-{i}" for i in range(8))
    places = [float(i) for i in range(8)]
    figure = draw_map(SliceMap(names, tuple(places), tuple(p % 2 / 100 for p in places), tuple(range(8)), (0.1,) * 8, 0.5))
    figure.draw_without_rendering()
    crowded = draw_map(SliceMap(names, (0.0,) * 7 + (9.0,), (0.0,) * 7 + (9.0,), tuple(range(8)), (-0.1,) * 8, 0.5))
    crowded.draw_without_rendering()
    for drawn in (figure, crowded):
        boxes = [text.get_window_extent() for text in drawn.axes[0].texts]
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
