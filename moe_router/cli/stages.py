"""init, demo, build, and the stages one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moe_router.cli.common import Session, command, register
from moe_router.cli.data import answer_slices
from moe_router.config import Config
from moe_router.workspace import write_text

if TYPE_CHECKING:
    from moe_router.data.prepare import Prepared

sources_argument = click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))


@command(example="moe-router init --workspace acme")
@click.option("--force", is_flag=True, help="Write the files anew, even where they exist.")
@click.option("--recipe", default="", metavar="NAME", help="Settings for a machine: see experts/recipes. [default: default]")
def _init(session: Session, force: bool, recipe: str) -> None:
    """Write moe-router.toml with every default, or a recipe's settings.

    Each setting has a comment. The recipes for different machines are written to experts/recipes/*.toml, to be changed and
    used with --recipe. Existing files are kept.
    """
    from moe_router.experts import recipe as recipes

    place = session.workspace
    settings = recipes.recipe(recipe, place.recipes) if recipe else Config()
    contents = {place.config: settings.to_toml()}
    contents |= {place.recipes / f"{name}.toml": recipes.text(name) for name in recipes.names()}
    written, kept = [], []
    for path, content in contents.items():
        if path.exists() and not force:
            kept.append(str(path))
            session.note(f"kept {path}: --force writes it anew")
        else:
            write_text(path, content)
            written.append(str(path))
    session.answer({"written": written, "kept": kept}, (f"wrote {path}" for path in written))


@command(example="moe-router demo --workspace tour")
@click.option(
    "--budget",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="`quick` fits two CPU cores and a few minutes; `full` trains on.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another number makes another sample company.")
def _demo(session: Session, budget: str, seed: int) -> None:
    """Run the whole road on a sample company.

    Export, slices, experts, gate, report, answers. Run again, it resumes and does no work twice.
    """
    from moe_router.demo import run_demo

    with session.working() as progress:
        result = run_demo(session.workspace, budget, seed, progress)
    session.answer(result.to_json(), result.lines())


@command("base", "data", "slice", "experts", "gate", "report", example="moe-router build tickets.csv chats.txt --k 6")
@sources_argument
def _build(session: Session, sources: tuple[Path, ...]) -> None:
    """Run all stages, from raw exports to the report.

    Resumable: what is up to date is not done again.
    """
    from moe_router.pipeline import build as run_build

    with session.working() as progress:
        result = run_build(session.workspace, list(sources), session.config, progress)
    session.answer(result.to_json(), result.lines())


@command("data", example="moe-router prepare tickets.csv --prompt-field subject --response-field reply")
@sources_argument
def _prepare(session: Session, sources: tuple[Path, ...]) -> None:
    """Read, clean and split raw exports.

    Each SOURCE is a chat log (.txt), a table (.csv, .tsv, .json, .jsonl, .parquet), a handbook (.md, .html), any of these in
    .gz or .zip, a folder of them, or a Hugging Face dataset (hf:owner/name). Records that cannot be used go to
    data/rejected.jsonl with the reason; the others are split into train, gate, tune and test.
    """
    from moe_router.data.prepare import prepare as run_prepare

    with session.working() as progress:
        prepared = run_prepare(session.workspace, list(sources), session.config, progress)
    for note in prepared.notes:
        session.note(note)
    value = {
        "records": prepared.records,
        "splits": prepared.splits,
        "rejected": prepared.rejected,
        "reasons": prepared.reasons,
        "notes": list(prepared.notes),
        "path": str(session.workspace.records),
        "report": str(session.workspace.data_report),
        "digest": prepared.digest,
        "fresh": prepared.fresh,
    }
    session.answer(value, prepared_lines(prepared, session))


@command("slice", "experts.rank", "experts.shared_rank", example="moe-router slice --k auto")
@click.option("--anew", is_flag=True, help="Make new slices even where earlier ones still fit.")
def _slice(session: Session, anew: bool) -> None:
    """Group the records into slices, one expert each.

    Records that were added since go to the slices there are, and an edited data/slices.toml is applied; other settings, or
    --anew, make new slices. `--k auto` trains small adapters on a sample for several k and takes what gains most.
    """
    from moe_router.data.slices import slice_records
    from moe_router.experts.probe import AdapterProbe

    with session.working() as progress:
        slices = slice_records(session.workspace, session.config, progress, AdapterProbe(session.config), anew)
    answer_slices(session, slices)


@command("base", "experts", "data.template", example="moe-router train-experts --rank 16")
def _train_experts(session: Session) -> None:
    """Train one expert per slice, and the shared one.

    All in one pass over the frozen base. Interrupted, the same command resumes.
    """
    from moe_router.experts.train import train_experts as run_train

    with session.working() as progress:
        library = run_train(session.workspace, session.config, progress)
    value = {"path": str(library.path), "shared": library.has_shared, "experts": list(library.names), "digest": library.digest}
    shared = " and the shared one" if library.has_shared else ""
    session.answer(value, [f"{len(library.names)} experts{shared} in {library.path}: {', '.join(library.names)}"])


@command("gate", example="moe-router train-gate --gate-mode top1")
@click.option(
    "--feedback",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help='Reviewed routes, JSON lines such as {"text": "…", "expert": "…"}; expert null: none of them.',
)
def _train_gate(session: Session, feedback: Path | None) -> None:
    """Fit and calibrate the gate.

    Its target is what each expert gets right on records that no expert was trained on.
    """
    from moe_router.gate.train import train_gate as run_train

    with session.working() as progress:
        gate = run_train(session.workspace, session.config, progress, feedback=feedback)
    value = {"path": str(session.workspace.experts), "experts": list(gate.names)}
    session.answer(value, [f"gate over {len(gate.names)} experts in {session.workspace.experts}"])


@command("report", "experts.dense_learning_rate", "experts.search_rates", example="moe-router report --budget standard")
@click.option(
    "--against",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OTHER.json",
    help="Another run's report.json to compare with, arm by arm.",
)
def _report(session: Session, against: Path | None) -> None:
    """Compare the mixture with dense adapters, won or lost.

    Perplexity on the test split against FLOPs, with the same training tokens for every arm, and a verdict. Written to
    reports/: report.html, report.md, report.json and every figure.
    """
    from moe_router.report.against import against as compare
    from moe_router.report.make import make_report

    with session.working() as progress:
        made = make_report(session.workspace, session.config, progress)
    settings = session.config.report
    other = against and compare(made, session.workspace.reports, against, settings.bootstrap, settings.seed)
    value = made.to_json() | ({"against": other.to_json()} if other else {})
    session.answer(value, [*made.lines(), *(other.lines() if other else [])])


def prepared_lines(prepared: Prepared, session: Session) -> Iterator[str]:
    """What the prepare stage kept and rejected."""
    splits = " · ".join(f"{name} {count:,}" for name, count in prepared.splits.items())
    yield f"{prepared.records:,} records in {session.workspace.records}: {splits}"
    if prepared.rejected:
        reasons = " · ".join(f"{count:,} {reason}" for reason, count in prepared.reasons.items())
        yield f"{prepared.rejected:,} rejected, listed in {session.workspace.rejected}: {reasons}"
    yield f"what went where: {session.workspace.data_report}"


init = register(_init, "init")
demo = register(_demo, "demo")
build = register(_build, "build")
prepare = register(_prepare, "prepare")
slice_ = register(_slice, "slice")
train_experts = register(_train_experts, "train-experts")
train_gate = register(_train_gate, "train-gate")
report = register(_report, "report")
