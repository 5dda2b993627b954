"""What every command shares: its options, its settings, where its output goes, and how its failures read."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from moe_router.cli.settings import overrides, settings_of
from moe_router.config import Config
from moe_router.console import Reporter, reporter
from moe_router.errors import MoeRouterError
from moe_router.experts.recipe import recipe as with_recipe
from moe_router.workspace import HOME_VARIABLE, Workspace


@dataclass(frozen=True)
class Session:
    """One call of a command: where it works, with which settings, and how it answers."""

    workspace: Workspace
    config: Config
    as_json: bool
    quiet: bool

    @contextlib.contextmanager
    def working(self) -> Iterator[Reporter]:
        """Progress on stderr, and whatever a library prints meanwhile too: stdout is for the answer."""
        with contextlib.redirect_stdout(sys.stderr), reporter(self.quiet) as progress:
            yield progress

    def answer(self, value: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Print `value` as one JSON document with --json, else the lines."""
        if self.as_json:
            click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
        else:
            for line in lines:
                click.echo(line)

    def note(self, text: str) -> None:
        """One line on stderr, unless quiet."""
        if not self.quiet:
            click.echo(text, err=True)


def command(*sections: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function that takes a Session the common options, flags for the settings in `sections`, and an example.

    A section is named whole (`experts`) or by one of its keys (`data.template`).
    """
    settings = settings_of(sections)
    trains = any(section.partition(".")[0] == "experts" for section in sections)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(workspace: str | None, as_json: bool, quiet: bool, **values: Any) -> None:
            flags = {s.name: values.pop(s.name) for s in settings}
            recipe = values.pop("recipe") if trains else None
            with one_line_failures(lambda: Workspace.find(workspace).root):
                place = Workspace.find(workspace)
                config = Config.load(place.config)
                if recipe:
                    config = with_recipe(recipe, place.recipes, config)
                config = config.override(overrides(settings, flags))
                function(Session(place, config, as_json, quiet), **values)

        for option in reversed([*(s.option() for s in settings), *([_recipe()] if trains else []), *_common()]):
            run = option(run)
        run.epilog = f"\b\nExample:\n  {example}"  # type: ignore[attr-defined]
        return run

    return decorate


def register(function: Callable[..., None], name: str, group: click.Group | None = None) -> click.Command:
    """Make the click command of a function that `command` has prepared."""
    made = click.command(name, epilog=function.epilog)(function)  # type: ignore[attr-defined]
    if group is not None:
        group.add_command(made)
    return made


def _recipe() -> Callable[[Any], Any]:
    return click.option(
        "--recipe", metavar="NAME", help="Settings of experts/recipes/NAME.toml or of the package's recipe of that name."
    )


def _common() -> list[Callable[[Any], Any]]:
    return [
        click.option(
            "--workspace",
            metavar="FOLDER",
            help=f"Folder with data/, experts/ and reports/. [default: {HOME_VARIABLE}, else the current folder]",
        ),
        click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr."),
    ]


@contextlib.contextmanager
def one_line_failures(root: Callable[[], Path]) -> Iterator[None]:
    """Turn what a user can act on into one line and exit code 1; a bug keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise click.ClickException("interrupted: the same command resumes") from error
    except Exception as error:
        text = explain(error, root)
        if text is None:
            raise
        raise click.ClickException(" ".join(text.split("\n"))) from error


def explain(error: BaseException, root: Callable[[], Path]) -> str | None:
    """What went wrong and what to do about it, or None for an error that is nobody's but ours."""
    if isinstance(error, MoeRouterError):
        return str(error)
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "(os error 28)" in str(error):
        return f"disk full: free space under {root()} and run the same command again; nothing half-written"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {error.filename or root()}: change it, or give --workspace a folder of your own"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "out of memory: `moe-router doctor` shows which bases fit; lower --row-tokens, --max-tokens or --k, or free memory"
        )
    return None
