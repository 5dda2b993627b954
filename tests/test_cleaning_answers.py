"""Stock replies and refusals, and the answers that only look like them."""

import pytest
from messy import BOILERPLATE, REFUSALS

from moe_router.data.cleaning.answers import refusal, stock_reply


@pytest.mark.parametrize("answer", REFUSALS)
def test_refusals(answer):
    assert refusal(answer)
    assert refusal(answer.upper())
    assert not stock_reply(answer)


@pytest.mark.parametrize("answer", BOILERPLATE)
def test_stock_replies(answer):
    assert stock_reply(answer)
    assert not refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't book your flight for that day.",
        "I cannot find this order in our system; which e-mail did you use?",
        "We use AI to sort tickets.",
        "Our chatbot is an AI assistant you can ask at any time.",
        "We can't help with that model, but the X200 is in stock.",
        "Não podemos fazer a troca sem o recibo.",
        "Não posso cancelar o pedido depois do envio.",
        "Okay.",
        "No.",
        "None",
        "👍",
        "42",
        "We have received your request to return order 12 and refunded 30 euros.",
        "If you will be out of the office, delegate your work items.",
        "Set up automatic e-mail routing under Settings.",
        "Testing takes two days.",
        "Obrigado pela compra, o pedido chega amanhã.",
        "As férias marcam-se no portal; a resposta automática ativa-se no correio.",
    ],
)
def test_answers_of_people(answer):
    assert not refusal(answer)
    assert not stock_reply(answer)


def test_a_long_answer_with_a_stock_sentence_says_more():
    assert not stock_reply("This is an automated message. " + "The parcel left the depot in the morning. " * 12)
