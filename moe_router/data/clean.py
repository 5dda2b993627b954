"""From items to records: text repaired and normalised, and what should not be learned set aside with the name of the rule."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from moe_router.config import DataConfig
from moe_router.data.cleaning.answers import refusal, stock_reply
from moe_router.data.cleaning.collapse import Diversity, Stretch, repeats_itself
from moe_router.data.cleaning.conflicts import disagreement
from moe_router.data.cleaning.identity import as_record, identified, kind, likeness
from moe_router.data.cleaning.languages import UNKNOWN, known_languages, language
from moe_router.data.cleaning.near import near_groups
from moe_router.data.cleaning.privacy import known_regions, redact
from moe_router.data.records import SPLITS, Message, Record
from moe_router.data.turns import Item
from moe_router.errors import ConfigError
from moe_router.workspace import digest_json

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
}
"""Every rule that rejects an item; the first that applies is the one named."""

HIDDEN = "personal data differs"
"""What is said instead of the two values when answers disagree about something that was redacted."""
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
    """Records and rejections; together they are as many as the items."""

    records: tuple[Record, ...]
    """`split` is the one declared, `group` the conversation; the split stage replaces both."""
    rejected: tuple[Rejection, ...]
    links: tuple[tuple[str, str], ...]
    """Pairs of conversations that share a record of which one copy was rejected."""
    findings: Findings = field(default_factory=Findings)

    @property
    def reasons(self) -> dict[str, int]:
        """Rejections by rule."""
        return dict(sorted(Counter(rejection.rule for rejection in self.rejected).items()))


@dataclass
class _Kept:
    """A record that passed so far, and how many others said the same."""

    record: Record
    item: Item
    language: str
    support: int = 1


def clean(items: Iterable[Item], settings: DataConfig | None = None) -> Cleaned:
    """Apply every rule to every item, in order; of equal or nearly equal records the first stays.

    The copy that stays takes the more protected split of the two, in the order train, gate, tune, test. Of
    contradictory answers the one given most often stays, else the first.
    Raises ConfigError for a language that cannot be detected and for a country that is none.
    """
    return _Cleaner(settings or DataConfig()).run(items)


class _Cleaner:
    """One pass over the items for the rules that look at one record, then the rules that compare records."""

    def __init__(self, settings: DataConfig) -> None:
        self.settings = settings
        self.regions = _regions(settings)
        self.allowed = _listed(settings.pii_allow)
        self.languages = _languages(settings)
        self.kept: dict[str, _Kept] = {}
        self.rejected: list[Rejection] = []
        self.links: list[tuple[str, str]] = []
        self.findings = Findings()

    def run(self, items: Iterable[Item]) -> Cleaned:
        for item in items:
            self._one(item)
        if self.settings.near_duplicates == "drop":
            self._near_duplicates()
        self._contradictions()
        self.findings.languages.update(kept.language for kept in self.kept.values())
        records = tuple(kept.record for kept in self.kept.values())
        return Cleaned(records, tuple(self.rejected), tuple(self.links), self.findings)

    def _one(self, item: Item) -> None:
        record, repaired = as_record(item)
        rule, reason = self._refusal(item, record)
        redacted = 0
        if not rule and self.settings.pii != "keep":
            record, counts = self._redacted(record)
            redacted = counts.total()
            if redacted and self.settings.pii == "drop":
                found = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
                rule, reason = "personal_data", f"holds {found}"
        if rule:
            self._reject(item, rule, reason)
            return
        key = digest_json(likeness(record))
        first = self.kept.get(key)
        if first:
            hidden = redacted and disagreement(item.prompt, first.item.response, item.response)
            rule, reason = ("contradiction", f"{HIDDEN}: disagrees with") if hidden else ("duplicate", "equal to")
            self._same(first, record)
            self._reject(item, rule, f"{reason} {first.record.source}")
            return
        self.findings.repaired += repaired
        if redacted:
            self.findings.redacted.update(counts)
        self.findings.diversity.add(item.file, item.line, record.response)
        if repeats_itself(record.response):
            self.findings.repetitive += 1
            record = replace(record, meta={**record.meta, FLAG: "the answer repeats itself"})
        self.kept[key] = _Kept(record, item, _language(record))

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
        keys = list(self.kept)
        prompts = [self.kept[key].record.prompt for key in keys]
        kinds = [kind(self.kept[key].record) for key in keys]
        for at, first in enumerate(near_groups(prompts, kinds)):
            if first != at:
                self._drop(keys[at], keys[first], "near_duplicate", f"nearly equal to {self.kept[keys[first]].record.source}")

    def _contradictions(self) -> None:
        prompts: dict[str, list[str]] = defaultdict(list)
        for key, kept in self.kept.items():
            prompts[digest_json(likeness(kept.record)[:-1])].append(key)
        for keys in prompts.values():
            sound: list[str] = []
            for key in sorted(keys, key=lambda key: -self.kept[key].support) if len(keys) > 1 else ():
                against = next(self._against(key, sound), None)
                if against:
                    other, matter = against
                    self._drop(key, other, "contradiction", f"{matter}: disagrees with {self.kept[other].record.source}")
                else:
                    sound.append(key)

    def _against(self, key: str, sound: Sequence[str]) -> Iterator[tuple[str, str]]:
        this = self.kept[key]
        for other in sound:
            that = self.kept[other]
            matter = disagreement(this.record.prompt, that.record.response, this.record.response)
            if matter:
                yield other, matter
            elif disagreement(this.record.prompt, that.item.response, this.item.response):
                yield other, HIDDEN

    def _drop(self, key: str, first: str, rule: str, reason: str) -> None:
        """Reject a record that was kept so far on account of another one."""
        gone = self.kept.pop(key)
        self._same(self.kept[first], gone.record)
        self._reject(gone.item, rule, reason)

    def _same(self, first: _Kept, record: Record) -> None:
        split = max(first.record.split, record.split, key=("", *SPLITS).index)
        first.record = replace(first.record, split=split)
        first.support += 1
        self.links.append((first.record.group, record.group))

    def _reject(self, item: Item, rule: str, reason: str) -> None:
        """Keep what was rejected, without personal data unless that is to be kept."""
        texts = [text for text in (item.prompt, item.response) if text]
        if self.settings.pii != "keep":
            texts, _ = redact([text[: self.settings.max_chars] for text in texts], self.regions, self.allowed)
        self.rejected.append(Rejection(item.file, item.line, rule, reason, "\n".join(texts)))


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
