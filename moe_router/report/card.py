"""The model card of a library: what it is, what it was made of, and how good it is, in Hugging Face's form.

Front matter and model index are made by huggingface_hub (Mitchell et al. 2019 for the idea). Numbers come from the report,
the library and the data stage; no text of the user's data goes in but the names of the slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_router import __version__
from moe_router.errors import WorkspaceError
from moe_router.experts.base import EMBEDDED
from moe_router.experts.library import SHARED, Library
from moe_router.report.document import Report
from moe_router.report.markdown import rows_of
from moe_router.report.registry import MIXTURE
from moe_router.report.tables import Table, tables
from moe_router.report.words import level, percent
from moe_router.workspace import Workspace, read_json, write_text

CARD = "README.md"
"""Where the Hugging Face hub looks for a model card, beside the weights."""
SHOWN = ("Arms", "Comparisons", "Slices")
"""Tables of the report that the card repeats."""
UNKNOWN = "unknown"
USE = """## How to use it

```python
from moe_router import Router

router = Router.load("{folder}")
answer = router.ask("...")
print(answer.text, answer.route)
```

Every folder beside this card is a plain PEFT adapter of the same base. {lone}"""
LONE = (
    "One alone is not what was trained, as the shared adapter is always on beside the routed ones: add both, with the weights "
    "that the gate gives."
)
LIMITS = (
    "It was trained to answer as the records do; it repeats their mistakes, and what they do not cover it does not know.",
    "Adapters can give away what they were trained on: treat them as confidentially as the data.",
    "Perplexity on held-out records of the same data says nothing about other questions: the gate abstains on those far off.",
)


@dataclass(frozen=True)
class Card:
    """What goes into a model card beside the report."""

    library: Library
    report: Report
    prepared: Mapping[str, Any]
    """What the data stage counted, as in prepared.json."""
    name: str
    license: str = "other"
    """As the hub names licences; `other` where nobody said."""

    def text(self) -> str:
        """The card as Markdown with YAML front matter."""
        parts = [f"---\n{self._front()}\n---", f"# {self.name}", *self._opening(), *self._contents(), *self._figures()]
        return "\n\n".join([*parts, *self._closing()]) + "\n"

    @property
    def base(self) -> str:
        """The base without the folders of this machine."""
        path = Path(self.library.base.model).expanduser()
        return path.name if path.is_dir() else self.library.base.model

    def _front(self) -> str:
        from huggingface_hub import EvalResult, ModelCardData

        ours, hub = self.report.arm(MIXTURE), self.base == self.library.base.model != EMBEDDED
        figures = {
            "perplexity": ours and ours.perplexity,
            "bits per byte": ours and ours.bits_per_byte,
            "share of right facts": ours and ours.key_fact_accuracy,
            "exact match": ours and ours.exact_match,
        }
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type="private",
                dataset_name="held-out records of the same data",
                metric_type=metric.replace(" ", "_"),
                metric_name=metric,
                metric_value=round(value, 4),
            )
            for metric, value in figures.items()
            if value is not None
        ]
        return ModelCardData(
            language=self.languages or None,
            license=self.license,
            library_name="peft",
            base_model=self.base if hub else None,
            pipeline_tag="text-generation",
            tags=["moe-router", "mixture-of-experts", "lora", "qlora", "routing"],
            model_name=self.name,
            eval_results=results or None,
        ).to_yaml()

    @property
    def languages(self) -> list[str]:
        """Of the records, most frequent first."""
        found = self.prepared.get("findings", {}).get("languages", {})
        return [code for code, _ in sorted(found.items(), key=lambda item: -item[1]) if code != UNKNOWN]

    def _opening(self) -> Iterator[str]:
        experts, verdict = self.library.names, self.report.verdict
        shared = ", a shared one that is always on," if self.library.has_shared else ""
        yield (
            f"{len(experts)} LoRA experts{shared} and a gate that mixes them query by query, over one frozen base "
            f"(`{self.base}`, {_precision(self.library)}). Made with moe-router {__version__}."
        )
        yield f"**{verdict.headline}**" + (f" {verdict.instead}" if verdict.instead else "")
        yield USE.format(folder=self.library.path.name, lone=LONE if self.library.has_shared else "").rstrip()

    def _contents(self) -> Iterator[str]:
        yield "## Experts"
        yield "\n".join(rows_of(self._experts()))
        yield "## Data"
        yield " ".join(self._data())
        yield "## Training"
        recipe = self.library.cards[self.library.members[0]].get("recipe", {})
        yield f"Base frozen, loss on responses only, template `{self.library.template}`. Every setting:"
        yield "\n".join(rows_of(Table("", "", ("setting", "value"), tuple((k, str(v)) for k, v in recipe.items()), (), (0,))))

    def _experts(self) -> Table:
        after = {row.name: row for row in self.report.experts}
        rows = []
        for name in self.library.members:
            card, found = self.library.cards[name], after.get(name)
            levels = (level(found.before), level(found.after)) if found else ("", "")
            title = "always on" if name == SHARED else "routed"
            rows.append((name, title, str(card["rank"]), f"{card['records']:,}", f"{card['tokens']:,}", *levels))
        head = ("expert", "", "rank", "records", "tokens trained", "perplexity of the base on its slice", "with the expert")
        return Table("Experts", "", head, tuple(rows), (2, 3, 4, 5, 6), (0,))

    def _data(self) -> Iterator[str]:
        kept, splits = self.prepared["records"], self.prepared["splits"]
        yield f"{kept:,} records, {self.prepared['rejected']:,} rejected while cleaning;"
        yield ", ".join(f"{count:,} {name}" for name, count in splits.items()) + "."
        yield "Experts saw the first split only, the gate the second, settings the third; the figures below are of the last."
        if self.languages:
            yield f"Languages: {', '.join(self.languages)}."
        redacted = self.prepared.get("findings", {}).get("redacted", {})
        if redacted:
            yield f"Personal data replaced by placeholders: {', '.join(f'{n:,} {kind}' for kind, n in redacted.items())}."

    def _figures(self) -> Iterator[str]:
        yield "## Evaluation"
        yield "\n".join(f"- {line}" for line in (*self.report.verdict.sentences, *self.report.verdict.remarks))
        for part in tables(self.report):
            if part.title in SHOWN:
                yield f"### {part.title}"
                yield part.note
                yield "\n".join(rows_of(part))

    def _closing(self) -> Iterator[str]:
        yield "## Limits"
        found = self.report.routing
        gate = () if found is None else (f"The gate would abstain on {percent(found.abstained)} of the test queries.",)
        yield "\n".join(f"- {line}" for line in (*LIMITS, *gate, *self.report.notes))
        yield "## Made from"
        digests = {"library": self.library.digest, "base": self.library.base_digest, "data": self.prepared.get("digest", "")}
        yield "\n".join(f"- {name}: `{digest}`" for name, digest in digests.items() if digest)


def write_card(workspace: Workspace, name: str = "", license: str = "other", path: Path | None = None) -> Path:
    """Write the card of the workspace's library to `path` (default: README.md beside the experts).

    Raises WorkspaceError where there is no report, or the report is of another library than the one there now.
    """
    library = Library.load(workspace.experts)
    report = Report.load(workspace.require(workspace.reports / "report.json", "report"))
    if report.environment.get("library_digest") != library.digest:
        raise WorkspaceError(f"{workspace.reports / 'report.json'} is of another library: run `moe-router report` again")
    prepared = read_json(workspace.require(workspace.prepared, "prepare"))
    path = path or workspace.experts / CARD
    write_text(path, Card(library, report, prepared, name or workspace.root.name or "moe-router library", license).text())
    return path


def _precision(library: Library) -> str:
    return {"nf4": "4-bit NF4", "gptq": "GPTQ"}.get(library.base.quantization, library.base.dtype)
