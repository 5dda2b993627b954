"""The language of a text, told offline by py3langid."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNKNOWN = "unknown"
FEWEST_LETTERS = 20
"""Shorter texts do not tell."""
SURE = 0.6
"""The least probability from which a language is named."""
_ENOUGH = 250
"""Characters that decide; the rest of a long text adds time, not certainty."""


def language(text: str) -> str:
    """ISO 639-1 code, or UNKNOWN where the text is short or the language in doubt."""
    text = text[:_ENOUGH]
    if sum(map(str.isalpha, text)) < FEWEST_LETTERS:
        return UNKNOWN
    code, probability = _identifier().classify(text)
    return str(code) if probability >= SURE else UNKNOWN


def known_languages() -> frozenset[str]:
    """Every code that `language` can give."""
    return frozenset(map(str, _identifier().labels))


@functools.cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
