"""Templates: text that reads the same while training and while answering."""

import pytest
from tokenizers import Tokenizer

import moe_router
from moe_router.data.records import Message
from moe_router.data.templates import PLAIN, TEMPLATES, Template, template
from moe_router.errors import ConfigError, InputError

TALK = (
    Message("system", "Seja breve."),
    Message("user", "Onde está?\nE quando?"),
    Message("assistant", "A caminho."),
    Message("user", "Hoje?"),
)
TALL = Template("tall", ("<s>", "</s>"), ("<u>", "</u>"), ("<a>", "</a>"), answer="\n", stop=("</a>",))


def test_plain_text():
    assert PLAIN.prompt(TALK) == "Seja breve.\nUser: Onde está?\nE quando?\nAssistant: A caminho.\nUser: Hoje?\nAssistant:"
    assert PLAIN.response("Sim.") == " Sim."


@pytest.mark.parametrize("style", [*TEMPLATES.values(), TALL], ids=lambda style: style.name)
def test_an_answer_reads_the_same_as_a_response_and_as_history(style):
    later = style.prompt(TALK)
    assert later.startswith(style.prompt(TALK[:2]) + style.response(TALK[2].content))


@pytest.mark.parametrize("style", [*TEMPLATES.values(), TALL], ids=lambda style: style.name)
def test_an_answer_stops_before_the_next_turn(style):
    later = style.prompt(TALK)[len(style.prompt(TALK[:2])) :]
    ends = [later.find(stop) for stop in style.stop if stop in later]
    assert later[: min(ends)] == style.response(TALK[2].content)


@pytest.mark.parametrize("answer", ["Sim.", "30 days", "ação", "- one\n- two", "「はい」"])
def test_prompt_and_response_are_cut_where_the_whole_text_is(answer):
    file = moe_router.__path__[0] + "/embedded_base/tokenizer.json"
    tokenizer = Tokenizer.from_file(file)
    prompt, response = PLAIN.prompt(TALK), PLAIN.response(answer)

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    assert ids(prompt) + ids(response) == ids(prompt + response)


@pytest.mark.parametrize("role", ["tool", "name", ""])
def test_an_unknown_role_is_named(role):
    with pytest.raises(InputError, match=f"role '{role}': use one of system, user, assistant"):
        PLAIN.prompt([Message(role, "x")])


def test_templates_are_found_by_name():
    assert all(template(name).name == name for name in TEMPLATES)
    with pytest.raises(ConfigError, match=r"data\.template = 'alpacca': use one of plain"):
        template("alpacca")
