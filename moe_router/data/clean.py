"""From items to records: text repaired and normalised, and what should not be learned set aside with the name of the rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from moe_router.config import DataConfig
from moe_router.data.cleaning.answers import refusal, stock_reply
from moe_router.data.cleaning.collapse import Diversity, Stretch, repeats_itself
from moe_router.data.cleaning.conflicts import disagreement
from moe_router.data.cleaning.identity import as_record, identified, kind, likeness
from moe_router.data.cleaning.languages import UNKNOWN, known_languages, language
from moe_router.data.cleaning.near import near_labels
from moe_router.data.cleaning.privacy import known_regions, redact
from moe_router.data.records import Message, Record, first_turn, is_synthetic
from moe_router.data.shelf import Entry, Shelf, Shelved
from moe_router.data.split import prompt_key
from moe_router.data.turns import Item
from moe_router.errors import ConfigError
from moe_router.workspace import digest_json

if TYPE_CHECKING:
    import numpy as np

RULES = {
    "malformed": "the line cannot be parsed",
    "unpaired_turn": "a turn without its counterpart",
    "run_together": "several interactions in one line or field",
    "broken_markers": "the markers that tell turns apart are damaged or left over",
    "empty_prompt": "the prompt has no text",
    "empty_response": "the response has no text",
    "over_long": "prompt and response are longer than data.max_chars",
    "boilerplate": "the answer is a placeholder or an automatic reply",
    "refusal": "the answer is another assistant's refusal, or about itself",
    "language": "the language is not one of data.languages",
    "personal_data": "personal data or a secret, and data.pii is `drop`",
    "duplicate": "history, prompt and response equal an earlier record's",
    "near_duplicate": "the prompt nearly equals an earlier one with the same answer",
    "contradiction": "the answer disagrees with another one to the same prompt",
    "synthetic": "synthetic, and beyond data.synthetic_share or in a group of real records that are held out",
}
"""Every rule that rejects an item; the first that applies is the one named."""

HIDDEN = "personal data differs"
"""What is said instead of the two values when answers disagree about something that was redacted."""
MOST_ANSWERS = 64
"""Answers to one prompt that a further one is compared with, so that cost grows with the number of records."""
FLAG = "flagged"
"""Key of `meta` under which a record that stays in spite of a doubt says which."""


@dataclass(frozen=True)
class Rejection:
    """A line of rejected.jsonl."""

    file: str
    line: int
    rule: str
    reason: str
    text: str


@dataclass
class Findings:
    """What cleaning noticed without rejecting anything for it."""

    repaired: int = 0
    """Records with text that had been decoded wrongly."""
    redacted: Counter[str] = field(default_factory=Counter)
    """Placeholders put in, by kind of personal data."""
    languages: Counter[str] = field(default_factory=Counter)
    """Records that stayed, by language."""
    repetitive: int = 0
    """Records whose answer repeats itself, flagged in their `meta`."""
    diversity: Diversity = field(default_factory=Diversity)

    @property
    def fallen(self) -> list[Stretch]:
        """Stretches of a source that look machine-generated."""
        return self.diversity.fallen()


@dataclass(frozen=True)
class Cleaned:
    """Records and rejections; together they are as many as the items. For inputs that fit in memory."""

    records: tuple[Record, ...]
    """`split` is the one declared, `group` the conversation; the split stage replaces both."""
    rejected: tuple[Rejection, ...]
    links: np.ndarray
    """Hashes of conversations that share a record of which one copy was rejected: (links, 2) int64."""
    findings: Findings = field(default_factory=Findings)

    @property
    def reasons(self) -> dict[str, int]:
        """Rejections by rule."""
        return dict(sorted(Counter(rejection.rule for rejection in self.rejected).items()))


def clean(items: Iterable[Item], settings: DataConfig | None = None) -> Cleaned:
    """Apply every rule to every item, in order; of equal or nearly equal records the first stays.

    The copy that stays takes the more protected split of the two, in the order train, gate, tune, test. Of
    contradictory answers the one given most often stays, else the first.
    Raises ConfigError for a language that cannot be detected and for a country that is none.
    """
    rejected: list[Rejection] = []
    with Shelf() as shelf:
        findings = sweep(items, settings or DataConfig(), shelf, rejected.append)
        return Cleaned(tuple(shelf.records()), tuple(rejected), shelf.links(), findings)


def sweep(items: Iterable[Item], settings: DataConfig, shelf: Shelf, reject: Callable[[Rejection], None]) -> Findings:
    """`clean` for any number of items: what stays is put on the shelf, each rejection is handed over as it is made."""
    return _Cleaner(settings, shelf, reject).run(items)


class _Cleaner:
    """One pass over the items for the rules that look at one record, then the rules that compare records."""

    def __init__(self, settings: DataConfig, shelf: Shelf, reject: Callable[[Rejection], None]) -> None:
        self.settings, self.shelf, self.hand_over = settings, shelf, reject
        self.regions = _regions(settings)
        self.allowed = _listed(settings.pii_allow)
        self.languages = _languages(settings)
        self.findings = Findings()

    def run(self, items: Iterable[Item]) -> Findings:
        for item in items:
            self._one(item)
        if self.settings.near_duplicates == "drop":
            self._near_duplicates()
        self._contradictions()
        self.findings.languages.update(self.shelf.languages())
        return self.findings

    def _one(self, item: Item) -> None:
        record, repaired = as_record(item)
        raw, where = (item.prompt, item.response), (item.file, item.line)
        rule, reason = self._refusal(item, record)
        redacted = 0
        if not rule and self.settings.pii != "keep":
            record, counts = self._redacted(record)
            redacted = counts.total()
            if redacted and self.settings.pii == "drop":
                found = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
                rule, reason = "personal_data", f"holds {found}"
        if rule:
            self._reject(where, raw, rule, reason)
            return
        same = likeness(record)
        key = digest_json(same)
        first = self.shelf.find(key)
        if first:
            hidden = redacted and disagreement(item.prompt, first.raw[1], item.response)
            rule, reason = ("contradiction", f"{HIDDEN}: disagrees with") if hidden else ("duplicate", "equal to")
            self.shelf.join(first.row, record)
            self._reject(where, raw, rule, f"{reason} {first.record.source}")
            return
        self.findings.repaired += repaired
        if redacted:
            self.findings.redacted.update(counts)
        self.findings.diversity.add(item.file, item.line, record.response)
        if repeats_itself(record.response):
            self.findings.repetitive += 1
            record = replace(record, meta={**record.meta, FLAG: "the answer repeats itself"})
        entry = Entry(
            record=record,
            likeness=key,
            asked=digest_json(same[:-1]),
            kind=kind(record),
            opening=first_turn(record),
            opening_key=prompt_key(record),
            raw=raw,
            language=_language(record),
            synthetic=is_synthetic(record),
        )
        self.shelf.put(entry)

    def _refusal(self, item: Item, record: Record) -> tuple[str, str]:
        """Rule and reason that reject the item by itself; both empty when it is fine."""
        if item.rule:
            return item.rule, item.reason
        rule = next(self._broken(record), "")
        if rule:
            return rule, RULES[rule]
        if self.languages and (spoken := _language(record)) not in self.languages:
            return "language", f"the language is {spoken}"
        return "", ""

    def _broken(self, record: Record) -> Iterator[str]:
        if not record.prompt:
            yield "empty_prompt"
        if not record.response:
            yield "empty_response"
        if len(record.prompt) + len(record.response) > self.settings.max_chars:
            yield "over_long"
        if stock_reply(record.response):
            yield "boilerplate"
        if refusal(record.response):
            yield "refusal"

    def _redacted(self, record: Record) -> tuple[Record, Counter[str]]:
        """The record with placeholders, one numbering for its whole conversation; what they replaced, by kind."""
        texts = [*(m.content for m in record.history), record.prompt, record.response, *record.meta.values()]
        made, counts = redact(texts, self.regions, self.allowed)
        if not counts:
            return record, counts
        turns = len(record.history)
        history = tuple(Message(m.role, text) for m, text in zip(record.history, made, strict=False))
        meta = dict(zip(record.meta, made[turns + 2 :], strict=True))
        return identified(replace(record, history=history, prompt=made[turns], response=made[turns + 1], meta=meta)), counts

    def _near_duplicates(self) -> None:
        """Reject records whose prompt is a near-duplicate of an earlier one: same figures, same history, same answer.

        A looser rule would lose facts: two long answers may differ in the one word that matters.
        """
        rows = self.shelf.column("row")
        first = near_labels(self.shelf.prompts(rows), self.shelf.column("kind"))  # (records,)
        for at in (first != range(len(first))).nonzero()[0]:
            one, other = int(rows[first[at]]), int(rows[at])
            self._drop(other, one, "near_duplicate", f"nearly equal to {self.shelf.get(one).record.source}")

    def _contradictions(self) -> None:
        for several in self.shelf.asked_alike():
            sound: list[Shelved] = []
            for this in sorted(several, key=lambda shelved: -shelved.support):
                against = next(self._against(this, sound), None)
                if against:
                    other, matter = against
                    reason = f"{matter}: disagrees with {other.record.source}"
                    self._drop(this.row, other.row, "contradiction", reason)
                elif len(sound) < MOST_ANSWERS:
                    sound.append(this)

    def _against(self, this: Shelved, sound: Sequence[Shelved]) -> Iterator[tuple[Shelved, str]]:
        for that in sound:
            matter = disagreement(this.record.prompt, that.record.response, this.record.response)
            if matter:
                yield that, matter
            elif disagreement(this.record.prompt, that.raw[1], this.raw[1]):
                yield that, HIDDEN

    def _drop(self, row: int, first: int, rule: str, reason: str) -> None:
        """Reject a record that was kept so far on account of another one."""
        gone = self.shelf.get(row)
        self.shelf.remove(row)
        self.shelf.join(first, gone.record)
        file, _, line = gone.record.source.rpartition(":")
        self._reject((file, int(line)), gone.raw, rule, reason)

    def _reject(self, where: tuple[str, int], raw: tuple[str, str], rule: str, reason: str) -> None:
        """Hand over what was rejected, without personal data unless that is to be kept."""
        texts = [text for text in raw if text]
        if self.settings.pii != "keep":
            texts, _ = redact([text[: self.settings.max_chars] for text in texts], self.regions, self.allowed)
        self.hand_over(Rejection(*where, rule, reason, "\n".join(texts)))


def _language(record: Record) -> str:
    return language(f"{record.prompt}\n{record.response}")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _regions(settings: DataConfig) -> tuple[str, ...]:
    wanted = _listed(settings.pii_regions.upper())
    strange = sorted(set(wanted) - known_regions())
    if strange:
        raise ConfigError(f"data.pii_regions: {', '.join(strange)} is no country: use ISO 3166 codes such as PT,US")
    return wanted


def _languages(settings: DataConfig) -> frozenset[str]:
    """The languages to keep, none for all; texts too short to tell stay."""
    wanted = frozenset(_listed(settings.languages.lower()))
    strange = sorted(wanted - known_languages()) if wanted else []
    if strange:
        raise ConfigError(f"data.languages: {', '.join(strange)} cannot be detected: use ISO 639-1 codes such as en,pt")
    return wanted and wanted | {UNKNOWN}
