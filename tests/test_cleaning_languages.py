"""Languages told offline."""

import pytest

from moe_router.data.cleaning.languages import UNKNOWN, known_languages, language


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Onde está a minha encomenda que fiz ontem?", "pt"),
        ("Preciso de trocar o tamanho das calças que comprei", "pt"),
        ("Where can I find the invoice of my last order?", "en"),
        ("¿Dónde está mi pedido de la semana pasada?", "es"),
        ("Wo finde ich die Rechnung meiner letzten Bestellung?", "de"),
        ("Où puis-je trouver la facture de ma dernière commande ?", "fr"),
        ("ok", UNKNOWN),
        ("113542617735902 - 4.50 / 2024-05-12", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_language(text, code):
    assert language(text) == code


def test_known_languages_hold_what_is_given():
    assert {"pt", "en", "es"} <= known_languages()
    assert UNKNOWN not in known_languages()
