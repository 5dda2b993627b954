"""Text that marks its turns: `### User: … ### Assistant: …`, `### Comment: … ### REPLY: … ### END.` and their kin."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moe_router.data.turns import Turn, fold

ROLE = {
    **dict.fromkeys(("user", "human", "usuario", "utilizador", "comment", "comentario", "instruction", "instrucao"), "user"),
    **dict.fromkeys(("assistant", "assistente", "reply", "resposta", "response"), "assistant"),
    **dict.fromkeys(("system", "sistema"), "system"),
    **dict.fromkeys(("input", "entrada"), "input"),
    **dict.fromkeys(("end", "fim"), "end"),
}
"""Role of a marker's name, case and accents aside; `input` continues an instruction, `end` ends an interaction."""
HEADINGS = frozenset(
    ("instruction", "instrucao", "input", "entrada", "response", "resposta", "end", "fim", "system", "sistema")
)
"""Names that are headings of ordinary texts too: `### Response:` stands in every API's manual."""

_MARK = re.compile(r"#{3}[^\S\n]{0,3}([^\W\d_]{1,20})[^\S\n]{0,3}[:：.]")
_END = re.compile(r"#{3}[^\S\n]{0,3}(END|FIM)[^\S\n]{0,3}[.:]?[^\S\n]{0,3}(?=\n|$)", re.IGNORECASE)
_NAMES = r"[^\S\n]{0,3}(?:comment|reply|end|human|user|usuário|assistant|assistente)\b"
_STRAY = re.compile(rf"(?<=[^\n#])#{{1,6}}{_NAMES}|#{{1,6}}{_NAMES}(?!\s*\w)", re.IGNORECASE)
"""A marker without its colon; at the start of a line, and with more words behind it, it is a heading."""
_TOKENS = re.compile(r"<\|im_(?:start|end)\|>|\[/?INST\]|<</?SYS>>")
_SPOKEN = re.compile(r"(?:^|[\s.?!])(User|Human|Customer|Usuário|Cliente|Assistant|Agent|Assistente|Atendente):\s")
_ANSWERS = frozenset(("Assistant", "Agent", "Assistente", "Atendente"))


def parts(text: str) -> list[tuple[str, str]]:
    """(role, text) of each marker with what follows it; first, with an empty role, what stands before any, if anything."""
    found = [(m.start(), m.end(), ROLE[fold(m[1])]) for m in _MARK.finditer(text) if _is_mark(m)]
    ends = {start for start, _, _ in found}
    found += [(m.start(), m.end(), "end") for m in _END.finditer(text) if m.start() not in ends]
    found.sort()
    stops = [start for start, _, _ in found[1:]] + [len(text)]
    lead = text[: found[0][0]] if found else text
    made = [("", lead.strip())] if lead.strip() else []
    return made + [(role, text[end:stop].strip()) for (_, end, role), stop in zip(found, stops, strict=False)]


def _is_mark(found: re.Match[str]) -> bool:
    role = ROLE.get(fold(found[1]))
    return role is not None and (role == "end" or found[0][-1] != ".")


def marked(text: str) -> bool:
    """Whether the text holds a user's and an assistant's marker."""
    return "###" in text and {"user", "assistant"} <= {role for role, _ in parts(text)}


def marked_turns(text: str, line: int) -> Iterator[Turn]:
    """Turns of a marked conversation; one that cannot be told apart is a single turn with a rule.

    An `input` continues the instruction before it; text before an instruction is the system's.
    """
    turns: list[tuple[str, str]] = []
    for role, said in parts(text):
        if role == "input" and turns and turns[-1][0] == "user":
            turns[-1] = ("user", "\n".join(filter(None, (turns[-1][1], said))))
        elif role != "end" or said:
            turns.append((role or "system", said))
    odd = _STRAY.search("\n".join(said for _, said in turns))
    if odd or {role for role, _ in turns} & {"end", "input"}:
        reason = f"{odd[0]!r} is no marker" if odd else "text behind a marker that is nobody's turn"
        yield Turn("", text, line, "broken_markers", reason)
    else:
        yield from (Turn(role, said, line) for role, said in turns)


def interaction(text: str, line: int) -> Iterator[Turn]:
    """Turns of one `### Comment: … ### REPLY: … ### END.`; anything else is a single turn with a rule."""
    found = parts(text)
    roles = "".join({"user": "u", "assistant": "a", "end": "."}.get(role, "?") for role, _ in found)
    stray = any("##" in said for _, said in found) or any(role == "end" and said for role, said in found)
    if roles == "ua." and not stray:
        yield from (Turn(role, said, line) for role, said in found[:2])
        return
    if roles.count("ua") > 1 or (roles.count("u") > 1 and roles.count("a") > 1):
        rule, reason = "run_together", "several interactions in one line"
    elif roles in ("u.", "a.") and not stray and not _bare(text):
        rule, reason = "unpaired_turn", "a comment without a reply" if roles == "u." else "a reply without a comment"
    else:
        rule, reason = "broken_markers", "not `### Comment: … ### REPLY: … ### END.`"
    yield Turn("", text, line, rule, reason)


def _bare(text: str) -> bool:
    """Whether a marker's name stands without its `###`."""
    return bool(re.search(r"(?<!#)(?<!# )\b(Comment|REPLY|END)\b\s*[:.]", text))


def misplaced(prompt: str, response: str) -> tuple[str, str]:
    """Rule and reason that reject a pair in which markers are left; both empty when there are none.

    Of a prompt only `###` markers count: it may well quote a conversation. In a response, a line that goes on with
    another user and another answer counts too.
    """
    for text in (prompt, response):
        if "###" in text and (left := _left(text)):
            several = "user" in left and "assistant" in left[left.index("user") :]
            return ("run_together", "another interaction in it") if several else ("broken_markers", "a marker is left in it")
        if token := _TOKENS.search(text):
            return "broken_markers", f"{token[0]} is left in it"
    for line in response.split("\n"):
        roles = ["a" if m[1] in _ANSWERS else "u" for m in _SPOKEN.finditer(line)] if ":" in line else []
        if "ua" in "".join(roles):
            return "run_together", "another interaction in the answer's line"
    return "", ""


def _left(text: str) -> list[str]:
    """Roles of the markers in a text that ordinary headings do not look like."""
    return [ROLE[name] for m in _MARK.finditer(text) if (name := fold(m[1])) in ROLE and name not in HEADINGS and _is_mark(m)]
