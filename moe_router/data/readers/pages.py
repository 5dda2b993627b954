"""Handbooks: the sections of Markdown and HTML pages, each under the headings that lead to it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_router.data.readers.source import Source
from moe_router.data.turns import Item
from moe_router.errors import InputError

MAX_PAGE = 1 << 25
"""Characters of the longest page: it is parsed whole."""
TRAIL = " › "
"""Between the headings of a trail."""

_LEVELS = {f"h{level}": level for level in range(1, 7)}
_UNREAD = frozenset(("script", "style", "noscript", "template", "nav", "head", "iframe", "svg", "button", "select", "form"))
_INLINE = frozenset(("a", "abbr", "b", "bdi", "bdo", "cite", "code", "dfn", "em", "font", "i", "ins", "kbd", "label", "mark"))
_INLINE |= {"q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "u", "var"}
_CELLS = frozenset(("td", "th"))


@dataclass(frozen=True)
class Heading:
    """A heading; level 0 is the page's title."""

    level: int
    text: str
    line: int


@dataclass(frozen=True)
class Section:
    """What stands between a heading and the next."""

    heading: Heading
    text: str


def read_markdown(source: Source) -> Iterator[Item]:
    """Items of a Markdown page; what they answer stays Markdown."""
    yield from section_items(markdown_sections(_whole(source), _title(source)), source)


def read_html(source: Source) -> Iterator[Item]:
    """Items of an HTML page; what they answer is plain text, lists and table rows a line each."""
    yield from section_items(html_sections(_whole(source), _title(source)), source)


def section_items(sections: Iterable[Section], source: Source) -> Iterator[Item]:
    """A pair for each section: its heading with those above it as the prompt, its text as the response.

    A heading with nothing but further headings under it lives on in theirs; one with nothing at all is an empty answer.
    """
    trail: list[Heading] = []
    pending: Section | None = None
    for section in sections:
        heading = section.heading
        if pending and heading.level <= pending.heading.level:
            yield _item(trail, pending, source)
        pending = None
        while trail and trail[-1].level >= heading.level:
            trail.pop()
        trail.append(heading)
        if section.text:
            yield _item(trail, section, source)
        elif heading.level:
            pending = section
    if pending:
        yield _item(trail, pending, source)


def _item(trail: list[Heading], section: Section, source: Source) -> Item:
    above = TRAIL.join(heading.text for heading in trail[:-1] if heading.text)
    prompt = f"{section.heading.text} ({above})" if above else section.heading.text
    meta = {"headings": TRAIL.join(heading.text for heading in trail)}
    line = section.heading.line
    return Item(source.name, line, prompt, section.text, (), source.split, f"{source.name}:{line}", meta)


def markdown_sections(text: str, title: str) -> Iterator[Section]:
    """Sections of Markdown, by markdown-it; a `title:` of its front matter takes the place of `title`."""
    from markdown_it import MarkdownIt

    lines = text.split("\n")
    start = 0
    if lines[0].strip() == "---" and (end := next((at for at, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)):
        named = (re.match(r"title:\s*(.+)", line) for line in lines[1:end])
        title = next((found[1].strip(" \"'") for found in named if found), title)
        lines[: end + 1] = [""] * (end + 1)
    tokens = MarkdownIt("commonmark").parse("\n".join(lines))
    heading = Heading(0, title, 1)
    for token, content in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            yield Section(heading, "\n".join(lines[start : token.map[0]]).strip())
            heading = Heading(int(token.tag[1:]), _inline(content), token.map[0] + 1)
            start = token.map[1]
    yield Section(heading, "\n".join(lines[start:]).strip())


def _inline(token: Any) -> str:
    words = "".join(child.content if child.type != "softbreak" else " " for child in token.children or ())
    return " ".join(words.split())


def html_sections(text: str, title: str) -> Iterator[Section]:
    """Sections of HTML, by Beautiful Soup; `<title>` takes the place of `title`. Menus, forms and scripts are left out."""
    from bs4 import BeautifulSoup, CData, NavigableString, Tag

    soup = BeautifulSoup(text, "html.parser")
    if soup.title and soup.title.get_text(strip=True):
        title = " ".join(soup.title.get_text().split())
    heading, words = Heading(0, title, 1), _Words()
    for node in soup.descendants:
        if isinstance(node, Tag):
            if node.name in _LEVELS and not _inside(node, _UNREAD):
                yield Section(heading, words.text())
                heading, words = (
                    Heading(_LEVELS[node.name], " ".join(node.get_text(" ").split()), node.sourceline or 1),
                    _Words(),
                )
            elif node.name == "br":
                words.add("\n", None)
        elif type(node) in (NavigableString, CData) and not _inside(node, _UNREAD | _LEVELS.keys()):
            words.add(str(node), next((parent for parent in node.parents if parent.name not in _INLINE), soup))
    yield Section(heading, words.text())


def _inside(node: Any, names: Iterable[str]) -> bool:
    return any(parent.name in names for parent in node.parents)


class _Words:
    """Text of blocks as lines."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.block: Any = None

    def add(self, text: str, block: Any) -> None:
        """Text that stands in `block`, or a line's end."""
        if block is None:
            self.made.append("\n")
            return
        kept = text if block.name == "pre" else re.sub(r"\s+", " ", text)
        if block is not self.block and kept.strip():
            cells = (
                self.block is not None and {block.name, self.block.name} <= {"td", "th"} and block.parent is self.block.parent
            )
            self.made.append(" | " if cells else "\n- " if block.name == "li" else "\n")
            self.block = block
        self.made.append(kept)

    def text(self) -> str:
        lines = (line.rstrip() for line in "".join(self.made).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _whole(source: Source) -> str:
    with source.text() as text:
        pieces = []
        while piece := text.read(MAX_PAGE + 1 - sum(map(len, pieces))):
            pieces.append(piece)
        page = "".join(pieces)
    if len(page) > MAX_PAGE:
        raise InputError(f"{source.name} is a page of more than {MAX_PAGE:,} characters: split it")
    return page


def _title(source: Source) -> str:
    """The file's name as words."""
    return re.sub(r"[-_]+", " ", Path(source.member or source.path).stem).strip()
