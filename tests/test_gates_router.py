"""What a caller asks of the gate reaches it through the router, and a message stands in for an answer."""

import pytest
from markers import answer, marked_router, question, route_to

from moe_router.errors import LibraryError
from moe_router.inference import Route, Router

SAID = "Ask the front desk."
TOLD = Route({}, 0.1, True, False, SAID)


@pytest.fixture(scope="module")
def router():
    return marked_router()


class Noting:
    """A selector that keeps what it was asked."""

    def __init__(self, route):
        self.found, self.asked = route, []

    def route(self, queries, **choice):
        self.asked.append(choice)
        return [self.found] * len(queries)


def under(router, selector):
    return Router(library=router.library, engine=router.engine, selector=selector, generation=router.generation)


def test_a_message_stands_in_for_its_answer_among_others(router):
    asked = [question("porto", 0), "who knows?", question("braga", 0)]
    found = router.ask_many(asked, routes=[route_to("porto"), TOLD, route_to("braga")])
    assert [each.text for each in found] == [answer("porto"), SAID, answer("braga")]
    assert found[1].usage.completion_tokens == 0 and found[1].usage.finish == "stop"


def test_a_message_can_be_streamed_and_remembered(router):
    stream = router.stream("who knows?", route=TOLD)
    assert "".join(stream) == SAID == stream.text
    stream.cancel()
    talk = under(router, Noting(TOLD)).conversation()
    assert talk.ask("who knows?").text == SAID
    assert [message.content for message in talk.messages] == ["who knows?", SAID]


def test_wishes_reach_the_gate_from_every_door(router):
    noting = Noting(TOLD)
    wishes = {"mode": "top1", "allowed": ["porto"], "max_experts": 1}
    mine = under(router, noting)
    mine.ask("?", **wishes)
    mine.ask_many(["?", "?"], **wishes)
    mine.stream("?", **wishes).answer()
    mine.route(["?"], **wishes)
    assert noting.asked == [wishes] * 4
    with pytest.raises(LibraryError, match="without a gate"):
        under(router, None).ask("?", **wishes)
