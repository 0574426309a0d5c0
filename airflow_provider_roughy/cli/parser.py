"""The parser of ``python -m airflow_provider_roughy``, for the same commands as Airflow's command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy import __version__
from airflow_provider_roughy.cli.definition import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_roughy", description="Operate batches of recordings with Roughy."
    )
    parser.add_argument("--version", action="version", version=__version__)
    _add_all(parser, COMMANDS, metavar="GROUP_OR_COMMAND")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    :param argv: Its arguments; by default, those of the process.
    :raises SystemExit: With status 1 if something is wrong, and 2 if an argument is.
    """
    parser = build_parser()
    try:
        import argcomplete
    except ImportError:
        pass
    else:
        argcomplete.autocomplete(parser)
    args = parser.parse_args(argv)
    args.func(args)


def _add_all(parser: argparse.ArgumentParser, commands: Sequence[Any], *, metavar: str) -> None:
    subparsers = parser.add_subparsers(metavar=metavar, required=True)
    for command in sorted(commands, key=lambda command: command.name):
        below = subparsers.add_parser(command.name, help=command.help, description=command.help)
        if hasattr(command, "subcommands"):
            _add_all(below, command.subcommands, metavar="COMMAND")
            continue
        for arg in command.args:
            arg.add_to_parser(below)
        below.set_defaults(func=command.func)
