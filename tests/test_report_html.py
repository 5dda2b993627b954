"""The HTML page: whole by itself, safe with any text, and complete."""

import re
from html.parser import HTMLParser

import pytest
from report_fake import ANSWERS, NOW, fake

from moe_router.report.figures import FIGURES
from moe_router.report.html import marked, page
from moe_router.report.style import inline_svg

VOID = {"meta", "br", "img", "path", "use", "rect", "circle", "line"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects the visible text, ids and labels."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.ids, self.labels, self.links = [], "", [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.labels += [given["aria-label"]] if tag == "svg" else []
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html():
    report = fake()
    figures = {f.name: inline_svg(f.draw(report), f.alt(report), f.name) for f in FIGURES if f.has(report)}
    return page(report.priced(1.2), figures, ANSWERS)


@pytest.fixture(scope="module")
def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def test_the_page_nests_and_ids_are_unique(read):
    assert read.open == []
    assert len(read.ids) == len(set(read.ids)) > 50


def test_the_page_needs_nothing_from_elsewhere(html, read):
    assert "<script" not in html
    assert not read.links
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert set(re.findall(r'"(https?://[^"]*)"', html)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_foreign_text_is_only_text(read):
    assert "<script>alert(1)</script>" in read.text
    assert "How long <b>now</b>?" in read.text
    assert "<orders> & co" in read.text


def test_every_figure_is_told_in_words(read):
    assert len(read.labels) == len(FIGURES) == 8
    assert any("férias-salários" in label for label in read.labels)


def test_figures_take_their_colours_from_the_page(html):
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--ink)" in drawings
    used = set(re.findall(r"var\((--\w+)\)", drawings))
    style = html[: html.index("</style>")]
    light, dark = style[: style.index("@media screen")], style[style.index("@media screen") :]
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawings)) == set()


def test_the_page_says_what_the_report_says(read):
    report = fake()
    flat = read.text.replace("\u00a0", " ")
    assert report.verdict.headline in flat
    assert all(name in flat for name in NOW)
    assert "1,000 answers" in flat
    assert "returns-refunds 0.80 + férias-salários 0.20 (confidence 0.90)" in flat


def test_backticks_become_code():
    assert marked("run `a < b` now") == "run <code>a &lt; b</code> now"


@pytest.mark.parametrize("names", [("base", "gate_top2"), ("base", "dense_active", "gate_top2")])
def test_a_report_of_few_arms_is_a_page_too(names):
    assert "</html>" in page(fake(names), {})
