"""Personal data and secrets: found at known places, told from other figures, replaced consistently."""

from collections import Counter

import pytest
from messy import personal_texts

from moe_router.data.cleaning.privacy import find, redact


def test_personal_data_at_known_places():
    """Recall per kind; a find counts when it covers the value."""
    injected, hits = Counter(), Counter()
    for text, kind, value in personal_texts(1400):
        injected[kind] += 1
        start = text.index(value)
        covered = any(spot.start <= start and start + len(value) <= spot.end for spot in find(text, ("US", "GB", "PT", "BR")))
        hits[kind] += covered
        assert covered or kind != "email", text
    recall = {kind: hits[kind] / injected[kind] for kind in injected}
    print(recall)  # noqa: T201
    assert sum(hits.values()) >= 0.95 * sum(injected.values())
    assert min(recall.values()) >= 0.95


@pytest.mark.parametrize(
    "text",
    [
        "Order 113542617735902 was placed on 2024-05-12 at 10:30 for $1,299,000.00.",
        "The table is 120-80-75 cm and costs 1.299,00 € (ref. 912345678).",
        "Version 4.12.0.1 runs on 192.168.1.10; see page 1001-2004.",
        "(245.3-191.2)/191.2 = 28 %; 14400 - 10800 = 3600",
        "I forgot my password: which link do I use? The password is required.",
        "A encomenda 12345678901 chega a 12-05-2024, das 9:00 às 18:00.",
        "Falta 1 código de 6 dígitos; o token é enviado por SMS.",
    ],
)
def test_figures_that_are_not_personal(text):
    assert find(text, ("US", "GB", "PT", "BR")) == ()


def test_one_value_has_one_placeholder_however_it_is_written():
    texts, counts = redact(["Call +351 912 345 678.", "+351912345678 or (415) 844-9759"], ("US", "PT"))
    assert texts == ["Call [PHONE_1].", "[PHONE_1] or [PHONE_2]"]
    assert counts == {"phone": 3}


def test_keys_go_whole():
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----"
    assert redact([f"use {key} here"])[0] == ["use [SECRET_1] here"]
    assert redact(["see https://bob:s3cret99@host.example/x"])[0] == ["see https://bob:[SECRET_1]@host.example/x"]


def test_text_without_any_is_returned_as_it_is():
    assert redact(["Olá!", ""]) == (["Olá!", ""], Counter())
