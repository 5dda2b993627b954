"""Router, Conversation and chat, on experts that each know one marker fact."""

import json
import random
import threading

import click
import pytest
from click.testing import CliRunner
from markers import MARKERS, answer, marked_router, names, others, question, route_to

from moe_router.cli import answers
from moe_router.config import GenerationConfig
from moe_router.data.records import Message
from moe_router.errors import ConfigError, InputError, LibraryError
from moe_router.inference import EngineConfig, Router

LONG = "the parcel is late and nobody says why " * 200


@pytest.fixture(scope="module")
def router():
    return marked_router(EngineConfig(slots=6, context=512, prefill_tokens=64))


def other(router, **changes):
    """The same engine under another router."""
    return Router(**{"library": router.library, "engine": router.engine, "selector": None, **changes})


def test_every_query_is_answered_by_its_own_expert(router):
    asked = names(8)
    found = router.ask_many([question(name, 9 * i) for i, name in enumerate(asked)], routes=[route_to(n) for n in asked])
    assert [a.text for a in found] == [answer(name) for name in asked]
    assert all(a.usage.finish == "stop" and 0 < a.usage.first_seconds <= a.usage.seconds for a in found)


def test_ask_stream_and_ask_many_agree(router):
    asked = "What is the code word? (braga)"
    stream = router.stream(asked)
    assert "".join(stream) == router.ask(asked).text == answer("braga")
    assert stream.text == answer("braga")
    assert stream.usage.finish == "stop"
    assert router.ask_many([]) == []


def test_a_query_too_long_is_refused_unless_it_may_be_cut(router):
    for ask in (router.ask, router.stream):
        with pytest.raises(InputError, match="shorten it"):
            ask(LONG)
    cutting = other(router, generation=router.generation, cut=True)
    assert cutting.ask_many([LONG], routes=[route_to("porto")])[0].usage.prompt_tokens == 500


def test_without_a_gate_routes_must_be_given(router):
    with pytest.raises(LibraryError, match="without a gate"):
        other(router, generation=router.generation).ask("hello")


def test_under_load_nothing_is_lost_or_mixed_up_and_every_slot_comes_back(router):
    """Forty requests of mixed length from five threads, a third of them cancelled midway."""
    asked = names(40)
    found = {}

    def work(mine):
        draw = random.Random(mine[0])
        for i in mine:
            longest = draw.choice([3, 12, 24])
            stream = router.stream(question(asked[i], draw.randrange(120)), GenerationConfig(longest), route_to(asked[i]))
            for _ in stream:
                if i % 3 == 0:
                    stream.cancel()
            found[i] = (longest, stream)

    threads = [threading.Thread(target=work, args=(range(start, 40, 5),)) for start in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == list(range(40))
    for i, (longest, stream) in found.items():
        assert answer(asked[i]).startswith(stream.text), i
        assert not any(marker in stream.text for marker in others(asked[i]))
        if i % 3 and longest > 10:
            assert (stream.text, stream.usage.finish) == (answer(asked[i]), "stop")
    assert any(stream.usage.finish == "cancelled" for _, stream in found.values())
    router.engine.wait()
    assert router.engine.free == 6


def test_a_conversation_remembers_and_the_gate_decides_each_turn(router):
    talk = router.conversation()
    first, second = talk.ask("Tell me of porto."), talk.ask("And of lisboa?")
    assert [list(route.weights) for route in talk.routes] == [["porto"], ["lisboa"]]
    assert [m.role for m in talk.messages] == ["user", "assistant"] * 2
    assert talk.messages[1].content == first.text
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.completion_tokens


@pytest.mark.parametrize(("kv", "known"), [("recompute", False), ("reuse", True)])
def test_a_new_route_reads_the_history_again_unless_told_to_reuse_it(router, kv, known):
    talk = router.conversation(kv=kv)
    talk.ask(f"{LONG[:400]} porto")
    router.engine.wait()
    before = router.engine.stats.known_tokens
    talk.ask("And lisboa?")
    assert (router.engine.stats.known_tokens > before) == known
    router.engine.wait()
    before = router.engine.stats.known_tokens
    talk.ask("And lisboa again?")
    assert router.engine.stats.known_tokens > before


@pytest.mark.parametrize(("stickiness", "kept"), [(0.0, False), (0.5, False), (0.7, True)])
def test_stickiness_is_the_lead_that_another_expert_needs(router, stickiness, kept):
    talk = router.conversation(stickiness=stickiness)
    for text in ("Tell me of porto.", "And then of lisboa?", "And so on?"):
        talk.ask(text)
    leads = [next(iter(route.weights), "") for route in talk.routes]
    assert leads[1] == ("porto" if kept else "lisboa")
    assert leads[2] == (leads[1] if stickiness else "")


def test_a_long_conversation_drops_its_oldest_turns_and_a_cancelled_turn_is_remembered(router):
    talk = router.conversation()
    for _ in range(4):
        usage = talk.ask(f"{LONG[:1200]} porto").usage
        assert usage.prompt_tokens <= 500
    stream = talk.stream("porto?")
    stream.cancel()
    assert stream.answer().usage.finish == "cancelled"
    assert talk.messages[-2] == Message("user", "porto?")
    with pytest.raises(InputError, match="shorten it"):
        talk.ask(LONG)
    assert len(talk.messages) == 10


def test_wrong_conversation_settings_are_refused(router):
    for wrong in ({"kv": "keep"}, {"stickiness": 1.5}):
        with pytest.raises(ConfigError, match="'recompute' or 'reuse'"):
            router.conversation(**wrong)


@pytest.fixture
def chat(router, monkeypatch):
    """Runs `chat` with lines on stdin, on our router instead of one from disk."""
    monkeypatch.setattr(answers, "_load", lambda session, progress: router)
    main = click.Group(commands={"chat": answers.chat})
    return lambda *args, lines: CliRunner().invoke(main, ["chat", *args], input="\n".join(lines))


def test_chat_answers_line_by_line_and_forgets_when_told(chat):
    asked = "What is the code word? (porto)"
    result = chat(lines=[asked, "", "/new", asked])
    assert result.exit_code == 0
    assert result.stdout == f"{answer('porto')}\n" * 2
    assert result.stderr.count("route: porto 1.00") == 2


def test_chat_as_json_is_one_document(chat):
    result = chat("--json", "-q", lines=["What is the code word? (évora)", "porto?"])
    turns = json.loads(result.stdout)["turns"]
    assert [turn["prompt"] for turn in turns] == ["What is the code word? (évora)", "porto?"]
    assert MARKERS["évora"] in turns[0]["text"]
    assert turns[1]["usage"]["prompt_tokens"] > turns[0]["usage"]["prompt_tokens"]
    assert result.stderr == ""


def test_chat_refuses_a_line_that_is_too_long_on_one_line(chat):
    result = chat(lines=[LONG])
    assert result.exit_code == 1
    assert "shorten it" in result.stderr.splitlines()[-1]
