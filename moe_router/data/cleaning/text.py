"""Text as the rules see it: repaired, tidied, and cut into words that compare alike."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SCRIPTS_WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Thai, Lao, Burmese, Khmer, kana and Han: there each character counts as a word."""
_WORD = re.compile(rf"[{_SCRIPTS_WITHOUT_SPACES}]|[^\W{_SCRIPTS_WITHOUT_SPACES}]+")
_ASCII_WORD = re.compile(r"[a-z0-9_]+")


def tidy(text: str) -> str:
    """NFC, `\\n` line ends, no control characters, no trailing spaces, no blank edges."""
    plain = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    tidied = "\n".join(line.rstrip() for line in _CONTROLS.sub("", plain).split("\n")).strip()
    return text if tidied == text else tidied  # one copy in memory, not two


def repair(text: str) -> str:
    """UTF-8 that was once read in another encoding, read rightly (ftfy); any other text as it is.

    Only the encoding is touched: curly quotes, ligatures, entities and widths stay as they were written.
    """
    if text.isascii():
        return text
    import ftfy

    return ftfy.fix_encoding(text)


@functools.lru_cache(maxsize=16)  # several rules look at one answer
def words(text: str) -> tuple[str, ...]:
    """The words of a text for comparing: compatible forms, case and punctuation aside."""
    if text.isascii():
        return tuple(_ASCII_WORD.findall(text.lower()))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return tuple(_WORD.findall(folded))


def shingles(tokens: Sequence[str], width: int = 3) -> set[str]:
    """The distinct runs of `width` words; a text with fewer words is one shingle, one without any has none."""
    if len(tokens) < width:
        return {" ".join(tokens)} if tokens else set()
    return {" ".join(tokens[at : at + width]) for at in range(len(tokens) - width + 1)}


def jaccard(one: set[str], other: set[str]) -> float:
    """Size of the intersection over that of the union; 1 for two empty sets."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0
