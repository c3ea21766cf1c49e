"""The command `metainit`: light, and loads a subcommand's room only when it is called.

A subcommand is a typer function, or an app with subcommands of its own, behind an entry point of the group
`metainit.commands`, so any installed package can offer one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from metainit import __version__
from metainit.errors import MetainitError, SourceError, suggestion

GROUP = "metainit.commands"

SUMMARIES: Mapping[str, str] = {
    "demo": "Train, register, serve and use a prior on this machine, in minutes",
    "doctor": "Say what is wrong with a set-up, and how to mend it",
    "train": "Train a recipe; Ray starts locally unless RAY_ADDRESS is set",
    "submit": "Send a recipe to a Ray cluster as a job",
    "zoo": "Build and show zoos: data sets of trained weights that a generator learns from",
    "tune": "Search the adaptation routine of a registered prior",
    "measure": "Measure starts beside tuned controls on held-out tasks",
    "fit": "Fit a network to a file or to every file of a folder",
    "predict": "Predict weights for a network of yours that nobody has trained",
    "generate": "Draw initial weights from a generator, as many as you like",
    "import-ghn3": "Turn a published GHN-3 file into a checkpoint",
    "cache": "Show, prune and verify what was fetched from endpoints",
    "list": "List what is registered",
    "show": "Show one version: card, routine and evidence",
    "pull": "Fetch a checkpoint into a file",
    "promote": "Move an alias to a version",
    "rollback": "Make the previous champion champion again",
    "gc": "Delete versions that no alias names",
    "backup": "Copy names with all their versions into a folder",
    "restore": "Bring what a back-up holds into a registry",
    "export": "Write a version as a folder of a model hub",
    "serve": "Serve the registry over HTTP",
    "keys": "Make, list, rotate and revoke keys of an endpoint",
}
"""In the order of the help page. Reading them here keeps `metainit --help` from loading every room."""


class LazyGroup(TyperGroup):
    """A group whose subcommands are loaded when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all installed subcommands."""
        found = _offered()
        return [n for n in SUMMARIES if n in found] + sorted(n for n in found if n not in SUMMARIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load one subcommand."""
        point = _offered().get(cmd_name)
        if point is None:
            return None
        try:
            function = point.load()
        except ImportError as error:
            raise SourceError(
                f"'metainit {cmd_name}' needs {error.name}: pip install 'metainit[all]'"
            ) from error
        if isinstance(function, typer.Typer):
            command = typer.main.get_command(function)
        else:
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            app.command(name=cmd_name)(function)
            command = typer.main.get_command(app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the subcommand; an unknown one is answered with the nearest name."""
        if args and args[0] not in _offered() and not args[0].startswith("-"):
            ctx.fail(f"no command is called {args[0]!r}; {suggestion(args[0], _offered())}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of subcommands without loading them."""
        rows = [(name, SUMMARIES.get(name, "")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"metainit {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    name="metainit",
    help="Better initial weights than random ones: learned, predicted, generated and computed.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show it."),
) -> None:
    """Options of the command itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors that metainit raises on purpose become one line and exit status 1."""
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="metainit")
    except MetainitError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)


if __name__ == "__main__":
    main()
