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
    with pytest.raises(ConfigError, match=r"data\.template = 'alpacca': use one of plain, stablebeluga, .*, chat"):
        template("alpacca")


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token if m['role'] == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def chat(source, **special):
    """The embedded tokenizer with another chat template, as `template` opens it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(moe_router.__path__[0] + "/embedded_base", **special)
    tokenizer.chat_template = source
    return template("chat", tokenizer)


def test_chat_is_what_the_tokenizer_renders():
    style = chat(CHATML)
    turns = [{"role": m.role, "content": m.content} for m in TALK]
    assert style.prompt(TALK) == style.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert style.prompt(TALK).endswith("Hoje?<|im_end|>\n<|im_start|>assistant\n")
    assert (style.response("Sim."), style.stop) == ("Sim.<|im_end|>", ("<|im_end|>",))


@pytest.mark.parametrize("source", [CHATML, STRICT], ids=["chatml", "strict"])
def test_a_chat_answer_reads_the_same_as_a_response_and_as_history(source):
    style = chat(source)
    later = style.prompt(TALK)
    assert later.startswith(style.prompt(TALK[:2]) + style.answer + TALK[2].content)
    answered = later[len(style.prompt(TALK[:2])) :]
    assert answered[: min(answered.find(stop) for stop in style.stop)] == style.answer + TALK[2].content


def test_a_chat_template_without_system_messages_puts_them_before_the_question():
    style = chat(STRICT)
    assert style.prompt(TALK[:2]).endswith("[user] Seja breve.\n\nOnde está?\nE quando?[assistant]")
    with pytest.raises(InputError, match="refuses the conversation"):
        style.prompt(TALK[1:2] * 2)


def test_what_ends_the_text_is_not_written_twice():
    style = chat(STRICT)
    assert style.response("Sim.") == " Sim."
    assert style.stop == (style.tokenizer.eos_token,)


def test_the_beginning_of_text_is_left_to_the_tokenizer_that_writes_it():
    style = chat(STRICT)
    bos, ids = style.tokenizer.bos_token, style.tokenizer("")["input_ids"]
    assert style.prompt(TALK[:2]).startswith(bos) is (ids != [style.tokenizer.bos_token_id])


def test_a_base_without_chat_template_is_named():
    with pytest.raises(ConfigError, match=r"tokenizer has no chat template: use one of plain, stablebeluga"):
        chat(None)
    with pytest.raises(ConfigError, match="belongs to a base"):
        template("chat")
    with pytest.raises(ConfigError, match="writes answers elsewhere"):
        chat("{{ messages | length }}")


def test_the_digest_follows_the_text():
    digests = {style.digest for style in TEMPLATES.values()} | {
        chat(CHATML).digest,
        chat(CHATML.replace("im_end", "end")).digest,
    }
    assert len(digests) == len(TEMPLATES) + 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stablebeluga", "### System:\nS\n\n### User:\nU\n\n### Assistant:\nA\n\n### User:\nV\n\n### Assistant:"),
        ("llama2", "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"),
        ("falcon", "System: S\nUser: U\nFalcon: A\nUser: V\nFalcon:"),
        ("guanaco", "S\n### Human: U\n### Assistant: A\n### Human: V\n### Assistant:"),
        ("alpaca", "S\n\n### Instruction:\nU\n\n### Response:\nA\n\n### Instruction:\nV\n\n### Response:"),
    ],
)
def test_published_templates(name, text):
    talk = [Message("system", "S"), Message("user", "U"), Message("assistant", "A"), Message("user", "V")]
    assert template(name).prompt(talk) == text


def test_alpaca_opens_with_its_own_words_where_no_system_speaks():
    assert template("alpaca").prompt([Message("user", "U")]).startswith("Below is an instruction that describes a task.")


@pytest.mark.parametrize("style", TEMPLATES.values(), ids=lambda style: style.name)
def test_what_a_template_writes_is_read_back(style):
    from moe_router.data.markers import marked, marked_turns

    text = style.prompt(TALK[1:3])[: -len(style.assistant[0]) or None]
    if marked(text):
        turns = [turn for turn in marked_turns(text, 1) if turn.role != "system"]
        assert [(turn.role, turn.text) for turn in turns] == [(m.role, m.content) for m in TALK[1:3]]
    else:
        assert style.name in ("plain", "falcon", "llama2")


def test_a_library_refuses_a_base_whose_template_says_something_else(tmp_path):
    from models import tiny_base

    from moe_router.config import BaseConfig
    from moe_router.errors import LibraryError
    from moe_router.experts.library import Library

    base = tiny_base(tmp_path / "base")
    base.tokenizer.chat_template = CHATML
    library = Library(
        path=tmp_path,
        names=(),
        has_shared=False,
        base=BaseConfig(),
        base_digest=base.digest,
        template="chat",
        max_tokens=0,
        inputs="",
        cards={},
        template_digest=template("chat", base.tokenizer).digest,
    )
    library.save_index()
    assert Library.load(tmp_path).template_digest == library.template_digest
    base.tokenizer.chat_template = STRICT
    with pytest.raises(LibraryError, match="trained with another text for template 'chat'"):
        Library.load(tmp_path).open(base)


def test_another_chat_template_is_another_base(tmp_path):
    from models import tiny_llama

    from moe_router.config import BaseConfig
    from moe_router.experts.base import base_digest

    folders = [tiny_llama(tmp_path / name) for name in ("plain", "same", "newer", "older")]
    (folders[2] / "chat_template.jinja").write_text(CHATML)
    settings = folders[3] / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("{", '{"chat_template": "x",', 1))
    digests = [base_digest(BaseConfig(str(folder))) for folder in folders]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
