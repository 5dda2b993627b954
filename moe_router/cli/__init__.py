"""The command line: a command parses, calls one function of the package, and prints what came of it."""

from __future__ import annotations

import click

from moe_router.cli import answers, data, evaluate, experts, gates, machine, papers, stages


def _show_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        import moe_router

        click.echo(f"moe-router {moe_router.__version__}")
        context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  moe-router demo",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version.")
def main() -> None:
    """A mixture of QLoRA experts over one 4-bit base, from a company's raw exports.

    Settings live in moe-router.toml of the workspace; flags override them. Results go to stdout, progress and notes to
    stderr. Exit codes: 0 done, 1 failed (one line says what and what to do), 2 wrong usage.
    """


for _command in (
    stages.init,
    stages.demo,
    stages.build,
    stages.prepare,
    stages.slice_,
    data.slices,
    data.synthesize,
    stages.train_experts,
    stages.train_gate,
    stages.report,
    evaluate.eval_,
    papers.card,
    papers.blind,
    answers.route,
    answers.ask,
    answers.chat,
    experts.experts,
    gates.gates,
    machine.doctor,
):
    main.add_command(_command)
