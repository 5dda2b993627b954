"""The prepare stage: raw exports in, split records out."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from moe_router.config import Config, DataConfig
from moe_router.data.arrange import UNUSED, Plan, arrange
from moe_router.data.clean import Findings, Rejection, sweep
from moe_router.data.data_report import report_files, write_data_report
from moe_router.data.readers import Source, expand
from moe_router.data.records import Record, save_records
from moe_router.data.shelf import Shelf
from moe_router.data.turns import Item
from moe_router.errors import InputError, WorkspaceError
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace, atomic, digest_file, digest_json, read_json, write_json

FORMAT = 2
_SILENT = Silent()
FEWEST = 40
"""Fewer records than this are no basis for four splits."""
LARGE_GROUP = 0.2
"""Share of all records from which a group is worth a note."""


@dataclass(frozen=True)
class Prepared:
    """What the prepare stage made; read = records + unused + rejected."""

    records: int
    rejected: int
    splits: dict[str, int]
    """Records of each split."""
    reasons: dict[str, int]
    """Rejections by rule."""
    notes: tuple[str, ...]
    """What the user should know: which columns were guessed, for one."""
    digest: str
    """Of the records' content, splits and groups; where they came from does not matter."""
    unused: int = 0
    """Good records beyond `data.limit`."""
    sources: tuple[dict[str, Any], ...] = ()
    """`file`, `sha256`, `items` and `records` of each source file."""
    findings: dict[str, Any] = field(default_factory=dict)
    """What was noticed without rejecting anything for it: repairs, placeholders, languages, doubts, groups."""
    inputs: str = field(default="", repr=False)
    """Digest of the sources and settings; equal inputs are not prepared again."""
    records_sha256: str = field(default="", repr=False)
    fresh: bool = False
    """Whether this call did the work; False when it was up to date."""

    @classmethod
    def load(cls, workspace: Workspace) -> Prepared:
        """What an earlier run wrote. Raises WorkspaceError when there is none or it is damaged."""
        path = workspace.require(workspace.prepared, "prepare")
        try:
            stored = read_json(path)
            if stored.pop("format") != FORMAT:
                raise KeyError("format")
            return cls(**{**stored, "notes": tuple(stored["notes"]), "sources": tuple(stored["sources"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise WorkspaceError(f"{path} is damaged: run `moe-router prepare` again") from error


def prepare(workspace: Workspace, sources: Sequence[Path], config: Config, progress: Progress = _SILENT) -> Prepared:
    """Read, clean, group, sample and split the sources into the workspace's data room.

    Raises InputError, before anything is written, when a source cannot be used or too little is left of them.
    """
    read = expand([Path(source) for source in sources], config.data, _own_files(workspace), lambda path: _name(path, workspace))
    hashes = [source.digest() for source in read]
    inputs = digest_json([FORMAT, [source.name for source in read], hashes, _settings(config.data)])
    done = _up_to_date(workspace, inputs)
    if done:
        if not all(path.exists() for path in report_files(workspace)):
            write_data_report(workspace, config.data.seed)
        return done
    progress.stage("prepare", len(read))
    for source in read:
        next(iter(source), None)  # a source that cannot be used should not wait for those before it
    _check_fields(read, config.data)
    with Shelf() as shelf, tempfile.TemporaryFile("w+", encoding="utf-8") as rejects:
        refuse = _Refusals(rejects)
        findings = sweep(_items(read, progress), config.data, shelf, refuse)
        plan = arrange(shelf, config.data, refuse)
        _check_enough(plan, refuse, config.data.limit)
        pairs = zip(read, hashes, strict=True)
        sources = [{"file": source.name, "sha256": sha256, "items": source.count} for source, sha256 in pairs]
        notes = filter(None, (*(source.note for source in read), *_finding_notes(findings), *_plan_notes(plan, shelf)))
        made = Prepared(
            records=plan.count,
            rejected=refuse.reasons.total(),
            splits=plan.splits,
            reasons=dict(sorted(refuse.reasons.items())),
            notes=tuple(notes),
            digest="",
            unused=int((plan.codes == UNUSED).sum()),
            sources=tuple(sources),
            findings=_findings(findings, plan),
            inputs=inputs,
        )
        prepared = _write(workspace, made, plan.records(shelf), rejects)
    write_data_report(workspace, config.data.seed)
    return prepared


class _Refusals:
    """Writes rejections to a file as they come, and counts them by rule."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.reasons: Counter[str] = Counter()
        self.first: Rejection | None = None

    def __call__(self, rejection: Rejection) -> None:
        self._file.write(f"{json.dumps(asdict(rejection), ensure_ascii=False)}\n")
        self.reasons[rejection.rule] += 1
        self.first = self.first or rejection


def _items(read: Sequence[Source], progress: Progress) -> Iterator[Item]:
    for source in read:
        yield from source
        progress.advance(1, f"{source.name}: {source.count}")


def _write(workspace: Workspace, prepared: Prepared, records: Iterable[Record], rejects: IO[str]) -> Prepared:
    """Write the stage's files; none takes its place before all are written, and prepared.json does so last."""
    told = _Told()
    with atomic(workspace.prepared) as summary, atomic(workspace.records) as table, atomic(workspace.rejected) as refused:
        rejects.seek(0)
        with refused.open("w", encoding="utf-8") as file:
            shutil.copyfileobj(rejects, file)
        save_records(table, told.listen(records))
        sources = tuple({**source, "records": told.files[source["file"]]} for source in prepared.sources)
        prepared = replace(prepared, digest=told.digest, sources=sources, records_sha256=digest_file(table), fresh=True)
        stored = asdict(prepared)
        del stored["fresh"]
        write_json(summary, {"format": FORMAT, **stored})
    return prepared


class _Told:
    """What is to be known of records that pass by once: how many come from each file, and a digest of their content."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._before = "["

    def listen(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self.files[record.source.rpartition(":")[0]] += 1
            told = json.dumps([record.id, record.split, record.group, record.meta], sort_keys=True, ensure_ascii=False)
            self._digest.update(f"{self._before}{told}".encode())
            self._before = ", "
            yield record

    @property
    def digest(self) -> str:
        """As `digest_json` of all of them would be."""
        whole = self._digest.copy()
        whole.update(b"]")
        return whole.hexdigest()


def _findings(found: Findings, plan: Plan) -> dict[str, Any]:
    sizes = plan.group_sizes
    return {
        "repaired": found.repaired,
        "redacted": dict(sorted(found.redacted.items())),
        "languages": dict(found.languages.most_common()),
        "repetitive": found.repetitive,
        "distinct": found.diversity.reference,
        "fallen": [asdict(stretch) for stretch in found.fallen],
        "groups": int((sizes > 0).sum()),
        "largest_group": int(sizes.max(initial=0)),
        "synthetic": plan.synthetic_count,
    }


def _finding_notes(found: Findings) -> Iterator[str]:
    if found.redacted:
        kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in found.redacted.most_common())
        yield f"put placeholders for personal data and secrets ({kinds}); --pii keep leaves them, --pii-allow names exceptions"
    if found.repetitive:
        yield f"{found.repetitive:,} answers repeat themselves, flagged in the records: machine-generated text often does"
    for stretch in found.fallen[:3]:
        yield (
            f"{stretch.file}, lines {stretch.first} to {stretch.last}: far fewer distinct word runs ({stretch.distinct:.0%}) "
            f"than elsewhere ({found.diversity.reference:.0%}); is it machine-generated?"
        )


def _plan_notes(plan: Plan, shelf: Shelf) -> Iterator[str]:
    sizes = plan.group_sizes
    if plan.count and sizes.max() > LARGE_GROUP * plan.count:
        first = int(plan.rows[(plan.groups.index == sizes.argmax()) & (plan.codes > 0)][0])
        yield (
            f"{sizes.max()} records hang together through equal prompts or conversations (one is "
            f"{shelf.get(first).record.source}): they share a split"
        )
    if plan.synthetic_count:
        share = plan.synthetic_count / plan.splits["train"]
        yield (
            f"{plan.synthetic_count:,} training records ({share:.0%}) are synthetic: experts learn the writer's mistakes and "
            "its style with them; no other split holds any"
        )


def _settings(data: DataConfig) -> dict[str, Any]:
    """The settings that decide what this stage writes."""
    return {name: value for name, value in asdict(data).items() if name != "template"}


def _own_files(workspace: Workspace) -> frozenset[Path]:
    """What this package writes into the data room: no source, even where the room itself is given as one."""
    own = (workspace.records, workspace.rejected, workspace.prepared, workspace.slices)
    return frozenset(path.resolve() for path in own)


def _name(path: Path, workspace: Workspace) -> str:
    """The path in the workspace of a file that lies in it, else the path as given."""
    full = path.resolve()
    return (full.relative_to(workspace.root) if full.is_relative_to(workspace.root) else path).as_posix()


def _up_to_date(workspace: Workspace, inputs: str) -> Prepared | None:
    """The earlier result, if it was made of the same inputs and its files are whole."""
    if not all(path.exists() for path in (workspace.prepared, workspace.records, workspace.rejected)):
        return None
    try:
        done = Prepared.load(workspace)
    except WorkspaceError:
        return None
    return done if done.inputs == inputs and done.records_sha256 == digest_file(workspace.records) else None


def _check_fields(read: Sequence[Source], data: DataConfig) -> None:
    """A field that the user named and no source has is a mistake worth stopping for."""
    for flag, named, position in (("--prompt-field", data.prompt_field, 0), ("--response-field", data.response_field, 1)):
        used = {(source.fields.prompt, source.fields.response)[position] for source in read if source.fields}
        if named and named not in used:
            found = ", ".join(sorted(used - {""})) or "none"
            raise InputError(f"no source has a field {named!r} (found instead: {found}): correct {flag} or leave it out")


def _check_enough(plan: Plan, refuse: _Refusals, limit: int) -> None:
    if plan.count < FEWEST:
        rejected = ", ".join(f"{count} {rule}" for rule, count in sorted(refuse.reasons.items())) or "none"
        if refuse.first:
            rejected += f"; first {refuse.first.file}, line {refuse.first.line}: {refuse.first.reason}"
        raise InputError(
            f"only {plan.count} of {len(plan.codes) - plan.refused + refuse.reasons.total()} records are left (rejected: "
            f"{rejected}), {FEWEST} are needed: {'raise data.limit' if 0 < limit < FEWEST else 'add sources'}"
        )
    empty = [split for split, count in plan.splits.items() if not count]
    if empty:
        raise InputError(
            f"no records for {', '.join(empty)}: the data forms {(plan.group_sizes > 0).sum()} groups of equal prompts or "
            "conversations; add sources, raise data.limit, or remove their own split field"
        )
