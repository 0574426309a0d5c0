"""The commands and their options, as Airflow's command line and ``python -m airflow_provider_roughy`` have them."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.compat import ActionCommand, Arg, GroupCommand

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds of each unit of an age.
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def age(text: str) -> float:
    """Return the seconds of an age such as ``90m``, ``12h``, ``7d`` or ``2w``.

    :raises argparse.ArgumentTypeError: If the text is not an age.
    """
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age: give a number and m, h, d or w, such as 12h or 7d")
    return float(int(found[1]) * _UNITS[found[2]])


def whole(text: str) -> int:
    """Return a whole number from 0 on.

    :raises argparse.ArgumentTypeError: If the text is not such a number.
    """
    if not re.fullmatch(r"\d{1,9}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _calls(path: str) -> Callable[[argparse.Namespace], None]:
    """Return the function of a command, which imports its module when it is called.

    :param path: ``module.function``, in this package.
    """

    def command(args: argparse.Namespace) -> None:
        module, _, name = path.rpartition(".")
        running = import_module("airflow_provider_roughy.cli.running")
        running.run(lambda: getattr(import_module(f"airflow_provider_roughy.{module}"), name), args)

    command.__name__ = path.rpartition(".")[2]
    return command


# ---- Options that several commands have

OUTPUT = Arg(
    ("-o", "--output"),
    help="Output format. Allowed values: json, yaml, plain, table (default: table)",
    metavar="(table, json, yaml, plain)",
    choices=("table", "json", "yaml", "plain"),
    default="table",
)
VERBOSE = Arg(("-v", "--verbose"), help="Make logging output more verbose", action="store_true")
YES = Arg(("-y", "--yes"), help="Do not prompt to confirm. Use with care!", action="store_true", default=False)
CONN_ID = Arg(
    ("--conn-id",), help="The Airflow connection to Roughy (default: roughy_default)", default="roughy_default"
)
LEDGER = Arg(("--ledger",), help="The ledger: an absolute path, or a URI such as s3://bucket/ledger", required=True)
LEDGER_OPTIONAL = Arg(("--ledger",), help="The ledger: an absolute path, or a URI such as s3://bucket/ledger")
LEDGER_CONN_ID = Arg(("--ledger-conn-id",), help="The Airflow connection of the ledger's storage")
RECORDINGS = Arg(
    ("recording",),
    nargs="+",
    help="A key of the ledger or its first six digits, or a file name, path or URI of a recording",
)
LIMIT = Arg(("--limit",), type=whole, default=100, help="Show at most this many, the newest (default: 100; 0 for all)")
PROJECT_ID = Arg(("--project-id",), help="The project; by default, that of the connection")
SOURCE_CONN_ID = Arg(("--source-conn-id",), help="The Airflow connection of the source's storage")
PATTERN = Arg(("--pattern",), action="append", help="Names to take, such as '*.mp4'; may be given several times")
RECURSIVE = Arg(("--recursive",), action="store_true", help="Take the files of subfolders, too")

_LEDGER = (LEDGER, LEDGER_CONN_ID, VERBOSE)
_ROUGHY = (CONN_ID, VERBOSE)

LEDGER_GROUP = GroupCommand(
    name="ledger",
    help="See and change what has been ingested",
    subcommands=(
        ActionCommand(
            name="list",
            help="List recordings, the newest first",
            func=_calls("cli.ledger.list_entries"),
            args=(
                *_LEDGER,
                OUTPUT,
                LIMIT,
                Arg(
                    ("--state",),
                    action="append",
                    help="Only those in this state, such as failed or pending_payment; may be given several times",
                ),
                Arg(("--source",), help="Only those whose path, URI or file name matches this glob, such as '*.mp4'"),
                Arg(("--older-than",), type=age, help="Only those changed before this age, such as 12h or 7d"),
                Arg(("--newer-than",), type=age, help="Only those changed within this age, such as 12h or 7d"),
            ),
        ),
        ActionCommand(
            name="show",
            help="Show all that the ledger has about recordings, and what the next run does about each",
            func=_calls("cli.ledger.show"),
            args=(*_LEDGER, OUTPUT, RECORDINGS),
        ),
        ActionCommand(
            name="retry",
            help="Have the next run ingest recordings again that are done; Roughy charges each again",
            func=_calls("cli.ledger.retry"),
            args=(*_LEDGER, YES, RECORDINGS),
        ),
        ActionCommand(
            name="forget",
            help="Forget recordings, also claims on those that are not done",
            func=_calls("cli.ledger.forget"),
            args=(
                *_LEDGER,
                YES,
                RECORDINGS,
                Arg(
                    ("--force",),
                    action="store_true",
                    help="Forget also what an active run holds, which may then be uploaded and charged twice",
                ),
            ),
        ),
        ActionCommand(
            name="recheck",
            help="Compare what is not ready with the state of its asset at Roughy",
            func=_calls("cli.ledger.recheck"),
            args=(
                *_LEDGER,
                OUTPUT,
                CONN_ID,
                YES,
                Arg(("--all",), action="store_true", help="Check those that are ready as well"),
                Arg(
                    ("--forget-gone",),
                    action="store_true",
                    help="Forget recordings that are done and whose asset is gone, so that the next run ingests them",
                ),
            ),
        ),
        ActionCommand(
            name="export",
            help="Write all entries as JSON, one a line",
            func=_calls("cli.ledger.export"),
            args=(*_LEDGER, Arg(("--file",), help="Where to write to (default: standard output)")),
        ),
    ),
)

PLAN = ActionCommand(
    name="plan",
    help="Show what a batch would upload, and what it would cost. Nothing is created",
    func=_calls("cli.plan.plan"),
    args=(
        *_ROUGHY,
        OUTPUT,
        PROJECT_ID,
        SOURCE_CONN_ID,
        LEDGER_OPTIONAL,
        LEDGER_CONN_ID,
        Arg(("source",), nargs="+", help="Folders, prefixes, globs or files, as `source` of the operator"),
        PATTERN,
        RECURSIVE,
        Arg(("--language",), help="The language spoken, two letters of ISO 639-1"),
        Arg(("--max-credits",), type=whole, help="The most that the run may cost"),
        Arg(("--credits-if-unknown",), type=whole, help="The credits to count for a recording of unknown length"),
    ),
)

BALANCE = ActionCommand(
    name="balance",
    help="Show the credits that are left",
    func=_calls("cli.account.balance"),
    args=(*_ROUGHY, OUTPUT),
)

CREDITS = ActionCommand(
    name="credits",
    help="Show the credits that were spent and added, by day, project or type",
    func=_calls("cli.account.credits"),
    args=(
        *_ROUGHY,
        OUTPUT,
        Arg(("--by",), choices=("day", "project", "type"), default="day", help="How to sum them up (default: day)"),
        Arg(("--days",), type=whole, default=30, help="How many days to go back, today included (default: 30)"),
    ),
)

ASSETS_GROUP = GroupCommand(
    name="assets",
    help="See and delete assets at Roughy",
    subcommands=(
        ActionCommand(
            name="list",
            help="List assets, the newest first",
            func=_calls("cli.account.list_assets"),
            args=(
                *_ROUGHY,
                OUTPUT,
                LIMIT,
                Arg(("--project-id",), help="Only those of one project"),
                Arg(("--state",), help="Only those in one state, such as ready or pending_payment"),
            ),
        ),
        ActionCommand(
            name="show",
            help="Show assets",
            func=_calls("cli.account.show_assets"),
            args=(*_ROUGHY, OUTPUT, Arg(("asset_id",), nargs="+", help="The id of an asset")),
        ),
        ActionCommand(
            name="delete",
            help="Delete assets and everything derived from them, at once and permanently",
            func=_calls("cli.account.delete_assets"),
            args=(*_ROUGHY, YES, Arg(("asset_id",), nargs="+", help="The id of an asset")),
        ),
    ),
)

PROJECTS_GROUP = GroupCommand(
    name="projects",
    help="See projects at Roughy",
    subcommands=(
        ActionCommand(
            name="list",
            help="List projects, the newest first",
            func=_calls("cli.account.list_projects"),
            args=(
                *_ROUGHY,
                OUTPUT,
                Arg(
                    ("--state",),
                    choices=("active", "archived"),
                    default="active",
                    help="Only those in this state (default: active)",
                ),
            ),
        ),
    ),
)

WEBHOOKS_GROUP = GroupCommand(
    name="webhooks",
    help="See, create, delete and test webhook endpoints",
    subcommands=(
        ActionCommand(
            name="list",
            help="List the webhook endpoints of the account",
            func=_calls("cli.webhooks.list_endpoints"),
            args=(*_ROUGHY, OUTPUT),
        ),
        ActionCommand(
            name="create",
            help="Create a webhook endpoint, so that Roughy sends webhooks to Airflow",
            func=_calls("cli.webhooks.create"),
            args=(
                *_ROUGHY,
                OUTPUT,
                Arg(("url",), help="Where Roughy sends to, such as https://airflow.example.org/roughy/webhooks"),
                Arg(
                    ("--event",),
                    action="append",
                    help="An event to send; may be given several times (default: all that end a wait for an asset)",
                ),
                Arg(("--description",), help="Free text"),
            ),
        ),
        ActionCommand(
            name="delete",
            help="Delete webhook endpoints",
            func=_calls("cli.webhooks.delete"),
            args=(*_ROUGHY, YES, Arg(("endpoint_id",), nargs="+", help="The id of an endpoint")),
        ),
        ActionCommand(
            name="test",
            help="Send a signed test message to Airflow's route, which creates no event",
            func=_calls("cli.webhooks.test"),
            args=(
                *_ROUGHY,
                OUTPUT,
                Arg(("--url",), help="The route (default: /roughy/webhooks below Airflow's [api] base_url)"),
            ),
        ),
    ),
)

DOCTOR = ActionCommand(
    name="doctor",
    help="Check the connection, storages, ledger, triggerer and webhooks, and say what to do",
    func=_calls("cli.doctor.doctor"),
    args=(
        *_ROUGHY,
        OUTPUT,
        LEDGER_OPTIONAL,
        LEDGER_CONN_ID,
        SOURCE_CONN_ID,
        Arg(("--source",), action="append", help="A source of a batch, to list it; may be given several times"),
        PATTERN,
        RECURSIVE,
        Arg(("--webhook-url",), help="The route of webhooks (default: as in `webhooks test`)"),
    ),
)

VERIFY = ActionCommand(
    name="verify",
    help="Check fact by fact where Roughy differs from what this package knows of it",
    func=_calls("conformance.command.verify"),
    args=(
        *_ROUGHY,
        YES,
        Arg(
            ("--max-credits",),
            type=whole,
            default=0,
            help="The most credits to spend: 0 (the default), or 1 to check everything",
        ),
        Arg(("--public-url",), help="An https URL that leads to this machine, for webhooks"),
        Arg(
            ("--listen",),
            type=whole,
            metavar="PORT",
            help="The port that --public-url leads to (default: the port of the URL)",
        ),
        Arg(("--file",), help="Where to write the results as JSON, to attach to an issue"),
        Arg(("--against",), metavar="FILE", help="Compare with the JSON of an earlier run"),
        Arg(("--rate",), type=float, default=2.0, help="The most requests a second, up to 2 (the default)"),
    ),
)

#: The commands below ``roughy``. A further group is one more line here.
COMMANDS: tuple[Any, ...] = (
    LEDGER_GROUP,
    PLAN,
    BALANCE,
    CREDITS,
    ASSETS_GROUP,
    PROJECTS_GROUP,
    WEBHOOKS_GROUP,
    DOCTOR,
    VERIFY,
)


def get_commands() -> list[Any]:
    """Return the commands for Airflow's command line, as the key ``cli`` of the provider's metadata names it."""
    return [GroupCommand(name="roughy", help="Operate batches of recordings with Roughy", subcommands=COMMANDS)]
