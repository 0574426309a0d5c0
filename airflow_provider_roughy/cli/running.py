"""How a command runs: what it prints, how it asks, and how it ends."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.compat import AirflowConsole, suppress_logs_and_warning
from airflow_provider_roughy.exceptions import RoughyError
from airflow_provider_roughy.transfer.storage import as_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from airflow_provider_roughy.hooks import RoughyHook
    from airflow_provider_roughy.ledger import Ledger

#: Tells Airflow 3 to read connections from its own database, as its own commands do.
_CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"


class CommandError(Exception):
    """A command cannot do what it was asked. The text says why, and what to do."""


def run(load: Callable[[], Callable[[argparse.Namespace], int | None]], args: argparse.Namespace) -> None:
    """Run a command, and end the process with status 1 if something is wrong.

    An error of this package is one line on standard error. Logs are only shown with ``--verbose``.

    :param load: Imports the function of the command.
    :param args: The parsed arguments.
    :raises SystemExit: If the status is not 0.
    """
    ended: list[int] = []

    @suppress_logs_and_warning
    def within(args: argparse.Namespace) -> None:
        ended.append(load()(args) or 0)

    try:
        with _server_context():
            within(args)
        sys.stdout.flush()
    except (CommandError, RoughyError) as error:
        print(as_line(f"Error: {' '.join(str(error).splitlines())}"), file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:
        # The reader, such as `head`, has read enough; Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    if ended != [0]:
        raise SystemExit(ended[0])


@contextmanager
def _server_context() -> Iterator[None]:
    before = os.environ.get(_CONTEXT)
    os.environ.setdefault(_CONTEXT, "server")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_CONTEXT, None)


# ---- Output


def print_rows(args: argparse.Namespace, rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str] = ()) -> None:
    """Print rows in the format of ``--output``.

    :param args: The parsed arguments.
    :param rows: What to print, with the same names in each.
    :param columns: The names that a table shows, of those that JSON and YAML have; all by default.
    """
    found = [dict(row) for row in rows]
    if args.output == "json":
        print(json.dumps(found, indent=2, default=str))
        return
    if args.output == "yaml":
        import yaml

        print(yaml.safe_dump([_plain(row) for row in found], sort_keys=False), end="")
        return
    if not found:
        print("No data found")
        return
    names = [name for name in columns or found[0] if name in found[0]]
    cells = [{name: _cell(row[name]) for name in names} for row in found]
    if args.output == "plain":
        from tabulate import tabulate

        # Without guesses at numbers, which would take some keys for one.
        print(tabulate([list(row.values()) for row in cells], headers=names, tablefmt="plain", disable_numparse=True))
        return
    from rich.markup import escape

    console = AirflowConsole(emoji=False, highlight=False)
    console.print_as_table([{name: escape(text) for name, text in row.items()} for row in cells])


def say(args: argparse.Namespace, text: str) -> None:
    """Print a sentence beside the rows: on standard error if a program may read the rows.

    :param args: The parsed arguments.
    :param text: The sentence.
    """
    print(as_line(text), file=sys.stderr if getattr(args, "output", "table") != "table" else sys.stdout)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return as_line(json.dumps(value, default=str) if isinstance(value, dict) else str(value))


def _plain(value: Any) -> Any:
    """Return a value as YAML has it: no subclasses of text, no dataclasses."""
    return json.loads(json.dumps(value, default=str))


def fields_of(resource: Any) -> dict[str, Any]:
    """Return the fields of a resource of Roughy that are no secrets.

    :param resource: The resource.
    """
    assert is_dataclass(resource)
    assert not isinstance(resource, type)
    hidden = {name for name, field in resource.__dataclass_fields__.items() if not field.repr}
    return {name: value for name, value in asdict(resource).items() if name not in hidden}


# ---- Questions


def confirm(args: argparse.Namespace, question: str) -> None:
    """Ask before something is changed, unless ``--yes`` is given.

    :param args: The parsed arguments.
    :param question: What is about to be done, as a question.
    :raises CommandError: If the answer is not yes, or there is no terminal to ask on.
    """
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(f"{question} There is no terminal to ask on: give --yes. Nothing was changed")
    # Not into what a program reads.
    print(f"{as_line(question)} (y/n) ", end="", file=sys.stderr, flush=True)
    try:
        answer = input()
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("Nothing was changed")


# ---- What most commands use


def open_hook(args: argparse.Namespace) -> RoughyHook:
    """Return a hook for the connection of ``--conn-id``."""
    from airflow_provider_roughy.hooks import RoughyHook

    return RoughyHook(args.conn_id)


def open_ledger(args: argparse.Namespace) -> Ledger:
    """Return the ledger of ``--ledger``.

    :raises CommandError: If there is no ledger.
    :raises RoughyLedgerError: If it cannot be read.
    """
    from airflow_provider_roughy.ledger import Ledger

    ledger = Ledger(args.ledger, conn_id=args.ledger_conn_id)
    if ledger.created() is None:
        raise CommandError(f"There is no ledger at {ledger.uri}: check --ledger and --ledger-conn-id")
    return ledger
