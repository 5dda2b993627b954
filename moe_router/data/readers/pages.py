"""Handbooks: the sections of Markdown and HTML pages, each under the headings that lead to it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_router.data.readers.source import Source, unpacked
from moe_router.data.turns import Item
from moe_router.errors import InputError

MAX_PAGE = 1 << 25
"""Characters of the longest page: it is parsed whole."""
TRAIL = " › "
"""Between the headings of a trail."""

_LEVELS = {f"h{level}": level for level in range(1, 7)}
_UNREAD = frozenset(("script", "style", "noscript", "template", "nav", "head", "iframe", "svg", "button", "select"))
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
    try:
        yield from section_items(html_sections(_whole(source), _title(source)), source)
    except ValueError as error:
        raise InputError(f"{source.name} cannot be read whole ({error}): save it as plainer HTML or as Markdown") from error


def section_items(sections: Iterable[Section], source: Source) -> Iterator[Item]:
    """A pair for each section: its heading with those above it as the prompt, its text as the response.

    A heading with nothing but further headings under it lives on in theirs; one with nothing at all is an empty answer.
    """
    for number, (above, section) in enumerate(_placed(sections), 1):
        heading = section.heading
        prompt = f"{heading.text} ({TRAIL.join(above)})" if above else heading.text
        meta = {"headings": TRAIL.join((*above, heading.text))}
        own = f"{source.name}#{number}"
        yield Item(source.name, heading.line, prompt, section.text, (), source.split, own, meta)


def _placed(sections: Iterable[Section]) -> Iterator[tuple[tuple[str, ...], Section]]:
    """The sections that become items, each with the headings above it."""
    trail: list[Heading] = []
    above: tuple[str, ...] = ()
    empty: Section | None = None
    for section in sections:
        level = section.heading.level
        if empty and level <= empty.heading.level:
            yield above, empty
        while trail and trail[-1].level >= level:
            trail.pop()
        above = tuple(heading.text for heading in trail if heading.text)
        trail.append(section.heading)
        empty = section if level and not section.text else None
        if section.text:
            yield above, section
    if empty:
        yield above, empty


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
    """Sections of HTML, by lxml; `<title>` takes the place of `title`. Menus, buttons and scripts are left out.

    Raises ValueError for a page of which the parser leaves something out.
    """
    from lxml import etree

    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    root = etree.fromstring(f"<html>{text}".encode("utf-8", "replace"), parser)
    if parser.error_log.filter_from_fatals():
        raise ValueError(" ".join(parser.error_log.last_error.message.split()))
    named = " ".join((root.findtext(".//title") or "").split())
    heading, opened, words = Heading(0, named or title, 1), None, _Words()
    unread, blocks = 0, [root]
    for event, node in etree.iterwalk(root, events=("start", "end")):
        starts, said = event == "start", node.text if event == "start" else node.tail
        unread += (node.tag in _UNREAD) * (1 if starts else -1)
        if node.tag not in _INLINE and node.tag != "br":
            blocks.append(node) if starts else blocks.pop()
        if not unread and node.tag in _LEVELS and (opened is None if starts else opened is node):
            if starts:
                yield Section(heading, words.text())
            else:
                heading = Heading(_LEVELS[node.tag], " ".join(words.text().split()), node.sourceline or 1)
            opened, words = node if starts else None, _Words()
        if node.tag == "br" and starts:
            words.end_line()
        if said and not unread and blocks:
            words.add(said, blocks[-1])
    yield Section(heading, words.text())


class _Words:
    """Text of blocks as lines."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.block: Any = None

    def add(self, text: str, block: Any) -> None:
        """Text that stands in `block`."""
        kept = text if block.tag == "pre" else re.sub(r"\s+", " ", text)
        last = self.block
        if block is not last and kept.strip():
            cells = last is not None and {block.tag, last.tag} <= _CELLS and block.getparent() is last.getparent()
            self.made.append(" | " if cells else "\n- " if block.tag == "li" else "\n")
            self.block = block
        self.made.append(kept)

    def end_line(self) -> None:
        self.made.append("\n")

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
    return re.sub(r"[-_]+", " ", unpacked(Path(source.member or source.path)).stem).strip()
