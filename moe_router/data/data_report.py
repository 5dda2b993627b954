"""The data report: what the prepare stage did with the sources, as a page and as Markdown, from the stage's own files."""

from __future__ import annotations

import html
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from moe_router.data.cleaning.text import words
from moe_router.data.records import BATCH
from moe_router.workspace import Workspace, read_json, write_text

EXAMPLES = 10
"""Rejects shown of each rule, drawn at random."""
_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_SHOWN = 240
"""Characters shown of a reject."""


@dataclass(frozen=True)
class DataReport:
    """Everything the report shows."""

    prepared: dict[str, Any]
    """prepared.json."""
    lengths: dict[str, Counter[int]]
    """Of prompts and of responses: records by number of words, each bin named by its lower edge."""
    rejects: dict[str, list[dict[str, Any]]]
    """Lines of rejected.jsonl, at most EXAMPLES of each rule."""
    rejected_by_file: Counter[str]
    slices: dict[str, Any] | None = None
    """slices.json, where slices of these records have been made."""
    map: str = ""
    """The slices as SVG."""

    @property
    def read(self) -> int:
        return self.prepared["records"] + self.prepared["unused"] + self.prepared["rejected"]


def report_files(workspace: Workspace) -> tuple[Path, Path]:
    """The page and its Markdown form."""
    return workspace.data_report, workspace.data_report.with_suffix(".md")


def write_data_report(workspace: Workspace, seed: int = 0) -> None:
    """Write both forms; `seed` draws the examples. Raises WorkspaceError when the stage's files are missing or damaged."""
    report = gather(workspace, seed)
    page, plain = report_files(workspace)
    write_text(plain, markdown(report))
    write_text(page, page_html(report))


def gather(workspace: Workspace, seed: int = 0) -> DataReport:
    """Read what the report needs, a batch of records and a line of rejects at a time."""
    import pyarrow.parquet as pq

    lengths = {"prompt": Counter(), "response": Counter()}
    with pq.ParquetFile(workspace.require(workspace.records, "prepare")) as table:
        for batch in table.iter_batches(BATCH, columns=list(lengths)):
            for column, counts in lengths.items():
                counts.update(_bin(len(words(text))) for text in batch.column(column).to_pylist())
    rejects: dict[str, list[dict[str, Any]]] = defaultdict(list)
    by_file: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    rng = random.Random(seed)
    with workspace.require(workspace.rejected, "prepare").open(encoding="utf-8") as lines:
        for reject in map(json.loads, lines):
            by_file[reject["file"]] += 1
            seen[reject["rule"]] += 1
            _sample(rejects[reject["rule"]], reject, seen[reject["rule"]], rng)
    prepared = read_json(workspace.prepared)
    slices, drawn = _slices(workspace, prepared["records_sha256"])
    return DataReport(prepared, lengths, dict(sorted(rejects.items())), by_file, slices, drawn)


def _slices(workspace: Workspace, records_sha256: str) -> tuple[dict[str, Any] | None, str]:
    """slices.json and the map, if the slices are of these records."""
    if not workspace.slices.exists() or not workspace.slice_map.exists():
        return None, ""
    found = read_json(workspace.slices)
    if not isinstance(found, dict) or found.get("records_sha256") != records_sha256:
        return None, ""
    drawn = workspace.slice_map.read_text(encoding="utf-8")
    return found, drawn.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)  # which a page does without


def _sample(sample: list[dict[str, Any]], reject: dict[str, Any], seen: int, rng: random.Random) -> None:
    """Reservoir sampling (Vitter 1985): each of `seen` is in the sample with equal chance."""
    if len(sample) < EXAMPLES:
        sample.append(reject)
    elif (at := rng.randrange(seen)) < EXAMPLES:
        sample[at] = reject


def _bin(length: int) -> int:
    return max(edge for edge in _EDGES if edge <= length)


def _bin_name(edge: int) -> str:
    after = next((other for other in _EDGES if other > edge), 0)
    return f"{edge:,}+" if not after else str(edge) if after == edge + 1 else f"{edge:,}–{after - 1:,}"


def _bins(counts: Counter[int]) -> dict[str, int]:
    """The bins from the first to the last that holds any record, empty ones between them included."""
    return {_bin_name(edge): counts[edge] for edge in _EDGES if counts and min(counts) <= edge <= max(counts)}


def _destinations(report: DataReport) -> dict[str, int]:
    prepared = report.prepared
    parts = {**prepared["splits"], "unused": prepared["unused"], "rejected": prepared["rejected"]}
    return {name: count for name, count in parts.items() if count}


def _sources(report: DataReport) -> Iterator[tuple[str, str, str, str]]:
    for source in report.prepared["sources"]:
        name = source["file"]
        yield name, f"{source['items']:,}", f"{source['records']:,}", f"{report.rejected_by_file[name]:,}"


def _noticed(report: DataReport) -> Iterator[tuple[str, str, str]]:
    """What was found and not rejected: (what, how many, what was done)."""
    found = report.prepared["findings"]
    yield "wrongly decoded text", f"{found['repaired']:,}", "repaired"
    for kind, count in found["redacted"].items():
        yield f"{kind.replace('_', ' ')}", f"{count:,}", "replaced by placeholders"
    yield "answers that repeat themselves", f"{found['repetitive']:,}", "flagged in the records"
    for stretch in found["fallen"][:EXAMPLES]:
        where = f"{stretch['file']}, lines {stretch['first']}–{stretch['last']}"
        yield f"little variety in {where}", f"{stretch['distinct']:.0%}", f"flagged here; elsewhere {found['distinct']:.0%}"


def _grouping(report: DataReport) -> str:
    prepared, found = report.prepared, report.prepared["findings"]
    copies, near = (prepared["reasons"].get(rule, 0) for rule in ("duplicate", "near_duplicate"))
    return (
        f"{copies:,} duplicates and {near:,} near-duplicates were rejected. The {prepared['records']:,} records left form "
        f"{found['groups']:,} groups of similar prompts and conversations, the largest of {found['largest_group']:,}; "
        "no group crosses splits."
    )


def _slice_rows(slices: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for name, size, own, prompts in zip(*(slices[key] for key in ("names", "sizes", "words", "prompts")), strict=True):
        yield name, f"{size:,}", ", ".join(own), _short(prompts[0]) if prompts else ""


def _slice_line(slices: Mapping[str, Any]) -> str:
    """How even the slices are, and how far new records have drifted."""
    line = f"The largest slice holds {slices['largest_to_mean']:.2f} times the mean."
    drift = slices["drift"]
    if drift["new"]:
        line += (
            f" {drift['new']:,} training records came later, {drift['outside']:.0%} of them beyond the slices' reach "
            f"(5 % without drift); spread {drift['spread']:.2f}."
        )
    return line


def _curve_rows(slices: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for tried in slices["curve"]:
        gain = f"{tried['gain']:+.1%} ± {tried['error']:.1%}"
        yield f"{tried['k']}", f"{tried['perplexity']:.2f}", gain, "chosen" if tried["chosen"] else ""


_SLICE_HEAD = ("slice", "training records", "words", "for example")
_CURVE_HEAD = ("slices", "perplexity", "gain", "")
_CURVE_NOTE = "What each number of slices gained, by adapters trained on a sample and held-out records"


def _explained(rule: str) -> str:
    from moe_router.data.clean import RULES

    return RULES.get(rule, "rejected while reading")


def markdown(report: DataReport) -> str:
    """The report as Markdown."""
    prepared = report.prepared
    lines = ["# Data report", "", f"**{prepared['records']:,} of {report.read:,} records kept.**", ""]
    lines += ["## What went where", "", *_table(("to", "records"), _counts(_destinations(report))), ""]
    lines += _table(("source", "read", "kept", "rejected"), _sources(report))
    if prepared["reasons"]:
        rows = [(f"`{rule}`", f"{count:,}", _explained(rule)) for rule, count in _largest(prepared["reasons"])]
        lines += ["", "## Rejected", "", *_table(("rule", "records", "why"), rows)]
    lines += ["", "## Noticed", "", *_table(("what", "how many", "done"), _noticed(report))]
    lines += ["", "## Duplicates and groups", "", _grouping(report)]
    lines += ["", "## Languages", "", *_table(("language", "records"), _counts(prepared["findings"]["languages"]))]
    if report.slices:
        lines += ["", "## Slices", "", _slice_line(report.slices), "", *_table(_SLICE_HEAD, _slice_rows(report.slices))]
        if report.slices["curve"]:
            lines += ["", f"{_CURVE_NOTE}:", "", *_table(_CURVE_HEAD, _curve_rows(report.slices))]
    for column, counts in report.lengths.items():
        lines += ["", f"## Length of {column}s in words", "", *_table(("words", "records"), _counts(_bins(counts)))]
    for rule, rejects in report.rejects.items():
        rows = [(f"{r['file']}:{r['line']}", r["reason"], _short(r["text"])) for r in rejects]
        lines += ["", f"## Rejected as `{rule}`: {_drawn(report, rule)}", "", *_table(("where", "why", "text"), rows)]
    return "\n".join(lines) + "\n"


def _drawn(report: DataReport, rule: str) -> str:
    total = report.prepared["reasons"][rule]
    return f"{EXAMPLES} of {total:,}, at random" if total > EXAMPLES else f"all {total}" if total > 1 else "the only one"


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: -pair[1])


def _counts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in counts.items()]


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else f"{flat[: _SHOWN - 1]}…"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(text) for text in row) + " |" for row in cells]


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return flat.replace("<", "&lt;") if flat != "---" else flat


def page_html(report: DataReport) -> str:
    """The report as one self-contained page: no script, no request, light or dark as the reader's system is."""
    style = files("moe_router.data").joinpath("data_report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Data report</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n" + "\n".join(_sections(report)) + "\n</main>\n</body>\n</html>\n"
    )


def _sections(report: DataReport) -> Iterator[str]:
    prepared = report.prepared
    yield f"<header><h1>Data report</h1><p>{prepared['records']:,} of {report.read:,} records kept</p></header>"
    yield _section(
        "What went where",
        _stacked(_destinations(report))
        + _html_table(("source", "read", "kept", "rejected"), _sources(report), numbers=(1, 2, 3)),
    )
    if prepared["reasons"]:
        rows = {rule: (count, _explained(rule)) for rule, count in _largest(prepared["reasons"])}
        yield _section("Rejected, by rule", _bars(rows, "rejected"))
    yield _section("Noticed, and kept", _html_table(("what", "how many", "done"), _noticed(report), numbers=(1,)))
    yield _section("Duplicates and groups", f"<p>{html.escape(_grouping(report))}</p>")
    yield '<div class="pair">'
    for column, counts in report.lengths.items():
        yield _section(f"Words in {column}s", _histogram(_bins(counts)))
    yield "</div>"
    languages = {name: (count, "") for name, count in prepared["findings"]["languages"].items()}
    yield _section("Languages", _bars(languages, "train"))
    if report.slices:
        yield _section("Slices", _slices_html(report.slices, report.map))
    if report.rejects:
        yield _section("Rejects, at random", "".join(_examples(report, rule) for rule in report.rejects))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _slices_html(slices: Mapping[str, Any], drawn: str) -> str:
    body = f"<p>{html.escape(_slice_line(slices))}</p><figure>{drawn}</figure>"
    body += _html_table(_SLICE_HEAD, _slice_rows(slices), numbers=(1,))
    if slices["curve"]:
        body += f"<h3>{_CURVE_NOTE}</h3>" + _html_table(_CURVE_HEAD, _curve_rows(slices), numbers=(0, 1, 2))
    return body


def _stacked(parts: Mapping[str, int]) -> str:
    """One bar cut into parts, and their legend."""
    total = sum(parts.values())
    cuts = "".join(f'<i class="{name}" style="flex:{count}" title="{name}: {count:,}"></i>' for name, count in parts.items())
    legend = "".join(
        f'<li><i class="{name}"></i>{name} <b>{count:,}</b> <small>{count / total:.1%}</small></li>'
        for name, count in parts.items()
    )
    return f'<div class="stack">{cuts}</div><ul class="legend">{legend}</ul>'


def _bars(rows: Mapping[str, tuple[int, str]], kind: str) -> str:
    """A horizontal bar a row: name, what it means, bar, count."""
    top = max((count for count, _ in rows.values()), default=1)
    made = "".join(
        f"<li><span>{html.escape(name.replace('_', ' '))}<small>{html.escape(text)}</small></span>"
        f'<span class="bar"><i class="{kind}" style="width:{100 * count / top:.2f}%"></i></span><b>{count:,}</b></li>'
        for name, (count, text) in rows.items()
    )
    return f'<ul class="bars">{made}</ul>'


def _histogram(bins: Mapping[str, int]) -> str:
    top = max(bins.values(), default=1)
    made = "".join(
        f'<li title="{name} words: {count:,} records"><b>{count:,}</b>'
        f'<i class="train" style="height:{100 * count / top:.2f}%"></i>'
        f"<small>{name}</small></li>"
        for name, count in bins.items()
    )
    return f'<ul class="histogram">{made}</ul>'


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        made = (
            f"<{tag}{' class=number' if at in numbers else ''}>{html.escape(cell)}</{tag}>" for at, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return f'<div class="scroll"><table><thead>{row("th", head)}</thead><tbody>{body}</tbody></table></div>'


def _examples(report: DataReport, rule: str) -> str:
    rows = [(f"{r['file']}:{r['line']}", r["reason"], _short(r["text"])) for r in report.rejects[rule]]
    name = html.escape(rule.replace("_", " "))
    return (
        f"<details open><summary>{name} <small>{_drawn(report, rule)}</small></summary>"
        f"{_html_table(('where', 'why', 'text'), rows)}</details>"
    )
