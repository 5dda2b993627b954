"""Handbooks: sections under their headings, in Markdown and HTML."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intake import accounted, pairs, read, refused, said, write

from moe_router.errors import InputError

MARKDOWN = """---
title: "Manual da Loja"
---
Bem-vindo.

# Férias

## Pedir férias

Peça até *maio*:

- no portal
- ou ao chefe

```
# not a heading
```

Faltas
------
Avise cedo.

## Vazio
# Contactos
"""
HTML = """<html><head><title>Manual
da Loja</title><style>p {}</style></head><body><nav><h2>Menu</h2><a>x</a></nav>
<p>Bem-<b>vindo</b>.<br>Olá!</p>
<h1>Férias</h1>
<div><h2>Pedir <i>férias</i></h2><p>Peça até   maio:</p><ul><li>no portal</li><li>ou ao <b>chefe</b></li></ul>
<table><tr><th>Ano</th><th>Dias</th></tr><tr><td>1.º</td><td>22</td></tr></table></div>
<h2>Faltas</h2>Avise cedo.<script>no()</script><!-- no -->
<h2>Vazio</h2><h1>Contactos</h1></body></html>"""


def test_sections_of_markdown(tmp_path):
    source = read(write(tmp_path / "guia-geral.md", MARKDOWN))
    assert pairs(source) == [
        ("Manual da Loja", "Bem-vindo."),
        (
            "Pedir férias (Manual da Loja › Férias)",
            "Peça até *maio*:\n\n- no portal\n- ou ao chefe\n\n```\n# not a heading\n```",
        ),
        ("Faltas (Manual da Loja › Férias)", "Avise cedo."),
        ("Vazio (Manual da Loja › Férias)", ""),
        ("Contactos (Manual da Loja)", ""),
    ]
    assert [item.line for item in source.items] == [1, 8, 19, 23, 24]
    assert source.items[1].meta == {"headings": "Manual da Loja › Férias › Pedir férias"}


def test_sections_of_html(tmp_path):
    source = read(write(tmp_path / "guia.html", HTML))
    assert pairs(source) == [
        ("Manual da Loja", "Bem-vindo.\nOlá!"),
        (
            "Pedir férias (Manual da Loja › Férias)",
            "Peça até maio:\n- no portal\n- ou ao chefe\nAno | Dias\n1.º | 22",
        ),
        ("Faltas (Manual da Loja › Férias)", "Avise cedo."),
        ("Vazio (Manual da Loja › Férias)", ""),
        ("Contactos (Manual da Loja)", ""),
    ]
    assert [item.line for item in source.items] == [1, 5, 7, 8, 8]


def test_a_page_without_title_goes_by_its_name(tmp_path):
    assert pairs(read(write(tmp_path / "guia-geral.md", "Texto."))) == [("guia geral", "Texto.")]


def test_a_page_that_is_too_long_to_parse_is_refused(tmp_path, monkeypatch):
    from moe_router.data.readers import pages

    monkeypatch.setattr(pages, "MAX_PAGE", 10)
    with pytest.raises(InputError, match=r"a\.md is a page of more than 10 characters: split it"):
        read(write(tmp_path / "a.md", "x" * 11))


PIECES = st.sampled_from(
    ["# A", "## B", "###", "text", "- item", "```", "", "> quote", "Title\n===", "---", "    code", "<div>"]
)
TAGS = st.sampled_from(
    ["<h1>A", "</h1>", "<p>", "</p>", "<h2>", "<li>", "<td>", "<nav>", "</nav>", "<br>", "<!--", "-->", "<pre>"]
)


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(PIECES | st.text(max_size=6), min_size=1, max_size=10))
def test_no_word_of_markdown_is_lost(tmp_path_factory, pieces):
    lines = [f"{piece} a{n}z".replace("\r", " ").replace("\0", " ") for n, piece in enumerate(pieces)]
    text = "\n\n".join(["x", *lines])
    items = accounted(write(tmp_path_factory.getbasetemp() / "fuzz.md", text.encode("utf-8", "replace")))
    assert all(f"a{n}z" in said(items) for n in range(len(pieces)))


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(TAGS | st.text(max_size=6), max_size=12))
def test_any_html_is_accounted_for(tmp_path_factory, pieces):
    text = "".join(pieces).replace("\r", "\n").replace("\0", "")
    accounted(write(tmp_path_factory.getbasetemp() / "fuzz.html", text.encode("utf-8", "replace")))


def test_a_heading_alone_is_an_empty_answer(tmp_path):
    source = read(write(tmp_path / "a.md", "# One\n# Two\nText.\n"))
    assert pairs(source) == [("One (a)", ""), ("Two (a)", "Text.")]
    assert refused(source) == []


def test_deeply_nested_pages_are_read_whole_or_refused(tmp_path):
    (item,) = read(write(tmp_path / "a.html", "<div>é <b>b</b>" * 1000)).items
    assert item.response.split() == ["é", "b"] * 1000
    with pytest.raises(InputError, match=r"a\.html cannot be read whole \(Excessive depth"):
        read(write(tmp_path / "a.html", "<div>é <b>b</b>" * 9000))


def test_sections_of_one_line_are_conversations_of_their_own(tmp_path):
    first, second = read(write(tmp_path / "a.html", "<h1>A</h1>b<h1>C</h1>d")).items
    assert first.conversation != second.conversation
