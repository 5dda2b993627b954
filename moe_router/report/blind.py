"""Answers of two arms for people to compare without knowing whose they are, and what their ratings come to.

The sheet is a CSV table and the same as a page; which side is which arm stands in a key file of its own. Sides are drawn
by seed; questions to which both arms gave the same answer are left out, and counted.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from moe_router.errors import InputError
from moe_router.workspace import digest_json, read_json, write_json, write_text

CHOICE = "better (A, B or =)"
HEAD = ("number", "question", "answer A", "answer B", CHOICE, "remarks", "reference")
TIES = ("=", "tie", "equal", "0")
FORMULA = ("=", "+", "@", "-", "\t", "\r")
"""Spreadsheets run cells that begin so; they get an apostrophe, and raters see text."""


@dataclass(frozen=True)
class Pair:
    """One question with two answers; `first` is the arm on side A."""

    number: int
    question: str
    a: str
    b: str
    first: str
    reference: str = ""
    """The answer in the data, where raters may see it."""


@dataclass(frozen=True)
class Sheet:
    """What raters get, and which arm is where."""

    arms: tuple[str, str]
    pairs: tuple[Pair, ...]
    equal: int
    """Questions left out as both arms gave the same answer."""
    seed: int

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, Any]],
        arms: tuple[str, str],
        questions: int = 40,
        seed: int = 0,
        references: bool = False,
    ) -> Sheet:
        """At most `questions` of the report's answers (rows of answers.json), drawn and put in order by seed.

        With `references`, raters see the answer in the data beside the two.
        Raises InputError for an arm that gave no answers, and where no two answers differ.
        """
        known = sorted({name for row in rows for name in row["answers"]})
        missing = [arm for arm in arms if arm not in known]
        if missing or arms[0] == arms[1]:
            raise InputError(f"arms {' and '.join(arms)}: choose two of {', '.join(known) or 'none (report.answered = 0)'}")
        differ = [row for row in rows if row["answers"][arms[0]].strip() != row["answers"][arms[1]].strip()]
        if not differ:
            raise InputError(f"{arms[0]} and {arms[1]} gave the same answer to all {len(rows)} questions: nothing to compare")
        random = np.random.default_rng(seed)
        drawn = random.permutation(len(differ))[:questions]
        sides = random.integers(2, size=len(drawn))
        pairs = []
        for number, (at, side) in enumerate(zip(drawn, sides, strict=True), start=1):
            first, second = arms[side], arms[1 - side]
            row, answers = differ[at], differ[at]["answers"]
            reference = row["reference"] if references else ""
            pairs.append(Pair(number, row["question"], answers[first], answers[second], first, reference))
        return cls(arms, tuple(pairs), len(rows) - len(differ), seed)

    @property
    def digest(self) -> str:
        """Ties a sheet to its key: of questions and answers as the raters see them."""
        return digest_json([[p.question, p.a, p.b] for p in self.pairs])

    def save(self, folder: Path) -> tuple[Path, Path, Path]:
        """Write sheet.csv, sheet.html and key.json, the last not for the raters."""
        paths = folder / "sheet.csv", folder / "sheet.html", folder / "key.json"
        write_text(paths[0], self._csv())
        write_text(paths[1], self._page())
        first = {str(pair.number): pair.first for pair in self.pairs}
        write_json(paths[2], {"arms": self.arms, "seed": self.seed, "equal": self.equal, "sheet": self.digest, "A": first})
        return paths

    def _csv(self) -> str:
        out = io.StringIO(newline="")
        table = csv.writer(out, lineterminator="\n")
        table.writerow(HEAD)
        for pair in self.pairs:
            table.writerow((pair.number, *map(_cell, (pair.question, pair.a, pair.b)), "", "", _cell(pair.reference)))
        return "\ufeff" + out.getvalue()  # without it, Excel takes UTF-8 for something else

    def _page(self) -> str:
        page = resources.files("moe_router.report").joinpath("sheet.html").read_text(encoding="utf-8")
        css = resources.files("moe_router.report").joinpath("page.css").read_text(encoding="utf-8")
        parts = "\n".join(map(_article, self.pairs))
        return page.replace("/*css*/", css).replace("<!--pairs-->", parts).replace("__COUNT__", str(len(self.pairs)))


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def _article(pair: Pair) -> str:
    sides = "".join(
        f'<section><h3>{side}</h3><p class="answer">{html.escape(text) or "<em>(empty)</em>"}</p></section>'
        for side, text in (("A", pair.a), ("B", pair.b))
    )
    choices = "".join(
        f'<label><input type="radio" name="q{pair.number}" value="{value}"> {label}</label>'
        for value, label in (("A", "A is better"), ("=", "equally good"), ("B", "B is better"))
    )
    reference = f'<p class="note">The data says: {html.escape(pair.reference)}</p>' if pair.reference else ""
    question = f"<legend>Which answer is better?</legend>{choices}"
    return (
        f'<article><h2><span class="number">{pair.number}</span> {html.escape(pair.question)}</h2>'
        f'{reference}<div class="sides">{sides}</div><fieldset>{question}</fieldset></article>'
    )


@dataclass(frozen=True)
class Rating:
    """What the raters said of two arms."""

    arms: tuple[str, str]
    wins: tuple[int, int]
    """Ratings that prefer each arm."""
    ties: int
    unrated: int
    share: float | None
    """Of the first arm among the ratings that prefer one."""
    ci95: tuple[float, float] | None
    """Of `share` (Wilson 1927); ratings of one question by several people count as independent."""
    p: float | None
    """Two-sided sign test."""
    raters: int
    agreement: float | None
    """Cohen's kappa, its mean over pairs of raters; None for one rater."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For the terminal."""
        one, other = self.arms
        found = [f"{one} preferred {self.wins[0]} times, {other} {self.wins[1]} times, equally good {self.ties} times"]
        if self.unrated:
            found.append(f"not rated: {self.unrated}")
        if self.share is not None and self.ci95 is not None and self.p is not None:
            low, high = self.ci95
            found.append(
                f"{one}'s share of the preferences: {100 * self.share:.0f} %, 95 % interval {100 * low:.0f} % to "
                f"{100 * high:.0f} %, p = {self.p:.3f}"
            )
        if self.agreement is not None:
            found.append(f"{self.raters} raters, kappa {self.agreement:.2f}")
        return found


def rate(sheets: Sequence[Path], key: Path) -> Rating:
    """Read filled sheets, one for each rater, with their key.

    Raises InputError for a sheet of another key, a choice that is none, or a sheet that cannot be read.
    """
    known = read_json(key)
    choices = [_choices(path, known) for path in sheets]
    one, other = known["arms"]
    said = [{n: _arm(choice, known, n) for n, choice in part.items()} for part in choices]
    flat = [arm for part in said for arm in part.values()]
    wins = flat.count(one), flat.count(other)
    unrated = len(sheets) * len(known["A"]) - len(flat)
    decided = sum(wins)
    share = wins[0] / decided if decided else None
    interval = wilson(wins[0], decided) if decided else None
    p = sign_test(*wins) if decided else None
    return Rating((one, other), wins, flat.count(""), unrated, share, interval, p, len(sheets), kappa(said))


def _choices(path: Path, key: Mapping[str, Any]) -> dict[str, str]:
    """A, B or = by number, of the rows that were filled in."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give the filled sheet.csv, saved as UTF-8") from error
    head = text.partition("\n")[0].replace(CHOICE, "")
    rows = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in head else ",")  # as Excel saves it in half of Europe
    found: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        number, choice = (row.get("number") or "").strip(), (row.get(CHOICE) or "").strip()
        if number not in key["A"]:
            raise InputError(f"{path} row {line}: number {number!r} is not in the key: use the sheet and key made together")
        if not choice:
            continue
        if choice.upper() not in ("A", "B") and choice.casefold() not in TIES:
            raise InputError(f"{path} row {line}: {choice!r} in column {CHOICE!r}: write A, B or =")
        found[number] = choice.upper() if choice.upper() in ("A", "B") else "="
    return found


def _arm(choice: str, key: Mapping[str, Any], number: str) -> str:
    """The arm that is preferred; nothing for a tie."""
    if choice == "=":
        return ""
    first = key["A"][number]
    second = next(arm for arm in key["arms"] if arm != first)
    return first if choice == "A" else second


def wilson(wins: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share, weight = wins / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of no preference: twice the smaller tail of a fair coin."""
    total, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(total, i) for i in range(fewer + 1)) / 2**total
    return min(1.0, 2 * tail)


def kappa(said: Sequence[Mapping[str, str]]) -> float | None:
    """Cohen's kappa (1960), its mean over pairs of raters, on the questions that both rated; None without such a pair."""
    found = []
    for i, one in enumerate(said):
        for other in said[i + 1 :]:
            both = [(one[n], other[n]) for n in one if n in other]
            if not both:
                continue
            agreed = sum(a == b for a, b in both) / len(both)
            sides = [[pair[side] for pair in both] for side in (0, 1)]
            chance = sum(sides[0].count(v) * sides[1].count(v) for v in {*sides[0], *sides[1]}) / len(both) ** 2
            found.append(1.0 if chance == 1 else (agreed - chance) / (1 - chance))
    return float(np.mean(found)) if found else None
