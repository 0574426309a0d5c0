"""``doctor``: check what a batch, its wait and webhooks need, and say what to do.

Each check is a function that yields instances of :class:`Finding`. A check that needs the result of a failed check is
skipped, and the other checks run. Nothing is created, except a test object in the storage of a ledger that exists.
"""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy import airflow_db, api, probe
from airflow_provider_roughy.api import decode
from airflow_provider_roughy.cli.running import CommandError, open_hook, print_rows, say
from airflow_provider_roughy.cli.webhooks import route, send_test
from airflow_provider_roughy.compat import AIRFLOW_VERSION, AirflowNotFoundException
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyError,
    RoughyNotFoundError,
    RoughyUnreachableError,
)
from airflow_provider_roughy.ingest.discover import MEDIA, discover
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.settings import Address, Settings
from airflow_provider_roughy.transfer.storage import as_line, local_path, without_secrets
from airflow_provider_roughy.webhooks.accounts import webhook_conn_ids
from airflow_provider_roughy.webhooks.messages import signing_secrets

if TYPE_CHECKING:
    import argparse

    from airflow_provider_roughy.hooks import RoughyHook

#: Seconds that the clocks may differ: a warning, and the most that signatures of webhooks allow.
_CLOCKS_WARN, _CLOCKS_FAIL = 30.0, 300.0


class Status(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    :param status: A :class:`Status`.
    :param found: What was found.
    :param do: What to do about it.
    """

    status: Status
    found: str
    do: str = ""


@dataclass
class Setup:
    """The set-up that is checked, and what earlier checks have read of it.

    :param args: The parsed arguments.
    :param hook: The hook of the connection.
    :param settings: The settings of the connection, once they are read.
    :param reply: Roughy's reply to the first request.
    :param ledgers: The ledger, once its check has passed.
    """

    args: argparse.Namespace
    hook: RoughyHook
    settings: Settings | None = None
    reply: Any = None
    ledgers: list[Ledger] = field(default_factory=list)


def doctor(args: argparse.Namespace) -> int:
    """Run all checks."""
    setup = Setup(args, open_hook(args))
    rows, statuses = [], []
    with setup.hook:
        for name, check in CHECKS.items():
            for finding in _findings(check, setup):
                statuses.append(finding.status)
                rows.append({"check": name, "status": str(finding.status), "found": finding.found, "do": finding.do})
    print_rows(args, rows)
    failed, warnings = statuses.count(Status.FAILED), statuses.count(Status.WARNING)
    if failed or warnings:
        say(args, f"{counted(failed, 'check')} failed, {counted(warnings, 'warning')}")
    else:
        say(args, "Nothing is wrong")
    return int(bool(failed))


def _findings(check: Callable[[Setup], Iterator[Finding]], setup: Setup) -> Iterator[Finding]:
    """Yield the findings of a check. An error of this package that the check does not handle is a finding, too."""
    try:
        yield from check(setup)
    except (RoughyError, CommandError) as error:
        yield Finding(Status.FAILED, str(error))


# ---- The connection


def _connection(setup: Setup) -> Iterator[Finding]:
    conn_id = setup.args.conn_id
    try:
        setup.settings = setup.hook.settings
    except RoughyConfigurationError as error:
        yield Finding(Status.FAILED, str(error), f"correct connection {conn_id!r}")
        return
    except RoughyError as error:
        missing = isinstance(error.__cause__, AirflowNotFoundException)
        create = (
            f"airflow connections add {conn_id} --conn-type roughy --conn-password sk_… --conn-extra "
            '\'{"project_id": "…"}\'; or AIRFLOW_CONN_' + conn_id.upper()
        )
        yield Finding(Status.FAILED, str(error), create if missing else "see whether the secrets backend answers")
        return
    conn_type = setup.hook.get_connection(conn_id).conn_type or "roughy"
    text = f"{conn_id}, of type {conn_type}, leads to {setup.settings.base_url}"
    if conn_type == "roughy":
        yield Finding(Status.OK, text)
    else:
        yield Finding(Status.WARNING, text, "give it the type roughy, so that Airflow's form has its fields")


def _extra(setup: Setup) -> Iterator[Finding]:
    if (settings := setup.settings) is None:
        yield _skipped("connection")
        return
    if settings.misspelled:
        yield Finding(Status.FAILED, f"fields that have no meaning: {settings.misspelled}", "correct them in the extra")
    elif settings.ignored:
        names = ", ".join(f"`{name}`" for name in settings.ignored)
        yield Finding(Status.WARNING, f"fields that have no meaning: {names}", "remove them from the extra")
    else:
        yield Finding(Status.OK, "every field has a meaning")


def _key(setup: Setup) -> Iterator[Finding]:
    if setup.settings is None:
        yield _skipped("connection")
        return
    call = api.get_credit_balance()
    try:
        setup.reply = setup.hook.client.send(call.request)
        balance = api.decipher(call, setup.reply, conn_id=setup.settings.conn_id)
    except RoughyAuthenticationError as error:
        yield Finding(Status.FAILED, str(error), "copy the key (sk_…) from Roughy's dashboard into the password")
        return
    except RoughyUnreachableError as error:
        yield Finding(
            Status.FAILED,
            str(error),
            "check the host of the connection, name resolution, firewall and proxy of this machine",
        )
        return
    except RoughyApiError as error:
        yield Finding(Status.FAILED, str(error), "try again later; Roughy's support takes the request id")
        return
    if balance <= 0:
        yield Finding(Status.WARNING, f"Roughy accepts the key; the balance is {balance:,}", "top up at Roughy")
    else:
        yield Finding(Status.OK, f"Roughy accepts the key; {counted(balance, 'credit')} left")


def _project(setup: Setup) -> Iterator[Finding]:
    if setup.settings is None or setup.reply is None or setup.reply.status >= 400:
        yield _skipped("key")
        return
    if setup.settings.project_id is None:
        yield Finding(
            Status.WARNING,
            "the connection names no project",
            "put `project_id` into the extra, or name one in each task that uploads; `projects list` shows them",
        )
        return
    try:
        project = setup.hook.get_project(setup.hook.get_project_id())
    except RoughyNotFoundError:
        yield Finding(
            Status.FAILED,
            f"the account has no project {setup.settings.project_id}",
            "correct `project_id` in the extra; `projects list` shows the projects of this key",
        )
        return
    if project.state == "archived":
        yield Finding(Status.WARNING, f"{project.name} ({project.id}) is archived", "reopen it, or name another one")
        return
    yield Finding(Status.OK, f"{project.name} ({project.id})")


def _clock(setup: Setup) -> Iterator[Finding]:
    there = decode.http_date(setup.reply.headers.get("date")) if setup.reply is not None else None
    if there is None:
        yield Finding(Status.SKIPPED, "no reply has a Date")
        return
    seconds = (datetime.now(UTC) - there).total_seconds()
    text = f"this machine is {abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} Roughy"
    do = "synchronise the clock (NTP)"
    if abs(seconds) > _CLOCKS_FAIL:
        yield Finding(Status.FAILED, f"{text}: webhooks and signed links fail", do)
    elif abs(seconds) > _CLOCKS_WARN:
        yield Finding(Status.WARNING, text, do)
    else:
        yield Finding(Status.OK, f"{text}")


def _proxy(setup: Setup) -> Iterator[Finding]:
    own = Address.of(setup.settings.base_url) if setup.settings is not None else None
    if own is None:
        yield _skipped("connection")
        return
    found = urllib.request.getproxies()
    proxy = found.get(own.scheme) or found.get("all")
    if proxy is None or own.is_loopback or urllib.request.proxy_bypass(own.host.strip("[]")):
        why = f", as {own.host} is this machine" if proxy and own.is_loopback else ", by NO_PROXY" if proxy else ""
        yield Finding(Status.OK, f"none is used{why}")
        return
    shown = without_secrets(proxy if "://" in proxy else f"http://{proxy}")
    # The check of the key has used it.
    works = setup.reply is not None and setup.reply.headers.get("x-request-id") is not None
    if works:
        yield Finding(Status.OK, f"{shown} leads to {own.host}")
    else:
        yield Finding(
            Status.FAILED,
            f"requests to {own.host} go to the proxy {shown}, and no answer of Roughy came back",
            f"correct {own.scheme.upper()}_PROXY, or add {own.host} to NO_PROXY",
        )


# ---- Storages


def _source(setup: Setup) -> Iterator[Finding]:
    args = setup.args
    if not args.source:
        yield Finding(Status.SKIPPED, "no --source is given")
    for source in args.source or ():
        shown = without_secrets(source)
        try:
            found = discover(
                source, pattern=args.pattern or MEDIA, recursive=args.recursive, conn_id=args.source_conn_id
            )
        except RoughyError as error:
            yield Finding(Status.FAILED, str(error), "correct the source, its connection, or what it may read")
            continue
        unreadable = [file for file in found.files if file.problem is not None]
        text = f"{shown}: {counted(len(found.files), 'recording')}"
        if found.left_out:
            text += f"; {counted(found.left_out, 'file')} of other names"
        if unreadable:
            first = unreadable[0]
            yield Finding(
                Status.WARNING,
                f"{text}; {len(unreadable):,} cannot be uploaded, such as {first.uri}: {first.reason}",
                "let the worker's user read them, or move them away",
            )
        elif not found.files:
            subfolders = "" if args.recursive else "; --recursive looks into subfolders"
            yield Finding(Status.WARNING, text, f"check the folder and the names in it{subfolders}")
        else:
            yield Finding(Status.OK, text)


def _ledger(setup: Setup) -> Iterator[Finding]:
    if setup.args.ledger is None:
        yield Finding(Status.SKIPPED, "no --ledger is given")
        return
    try:
        ledger = Ledger(setup.args.ledger, conn_id=setup.args.ledger_conn_id)
        inside = [source for source in setup.args.source or () if ledger.is_within(source)]
        if inside:
            yield Finding(
                Status.FAILED, f"{ledger.uri} is in the source {without_secrets(inside[0])}", "put it elsewhere"
            )
            return
        if ledger.created() is None:
            path = local_path(str(setup.args.ledger))
            if path is not None and not os.path.isdir(folder := os.path.dirname(path.rstrip("/"))):
                yield Finding(
                    Status.FAILED,
                    f"{as_line(folder)}, which is to contain the ledger, does not exist",
                    "correct --ledger, or mount the volume: a batch creates the ledger only in a folder that exists",
                )
                return
            yield Finding(
                Status.WARNING,
                f"there is no ledger at {ledger.uri}: to a batch, every recording is new",
                "correct --ledger, or let the first run create it",
            )
            return
        ledger.check()
    except RoughyError as error:
        yield Finding(Status.FAILED, str(error), "correct the ledger's location, its connection, or its permissions")
        return
    setup.ledgers.append(ledger)
    yield Finding(Status.OK, f"{ledger.uri}: an object that exists is not overwritten")


def _ledger_size(setup: Setup) -> Iterator[Finding]:
    if not setup.ledgers:
        yield _skipped("ledger")
        return
    ledger = setup.ledgers[0]
    snapshot = ledger.snapshot()
    problems = len(snapshot.problems)
    open_keys = snapshot.open.keys() - snapshot.done
    text = (
        f"in use since {(ledger.created() or '')[:10]}; {counted(len(snapshot.done), 'recording')} done, "
        f"{problems:,} of them not successful; {len(open_keys):,} not done"
    )
    if open_keys:
        yield Finding(Status.OK, text, "`ledger list --state pending_payment --state uploading` shows them")
    else:
        yield Finding(Status.OK, text)


# ---- This machine and Airflow


def _extras(setup: Setup) -> Iterator[Finding]:
    try:
        probe.check_installed()
    except RoughyConfigurationError:
        yield Finding(
            Status.WARNING,
            "PyAV is not installed, so `max_credits`, `dry_run` and `plan` do not work",
            "pip install 'airflow-provider-roughy[probe]'",
        )
        return
    yield Finding(Status.OK, "probe (PyAV), for `max_credits` and `plan`")


def _triggerer(setup: Setup) -> Iterator[Finding]:
    try:
        found = airflow_db.newest_triggerer()
    except Exception as error:  # SQLAlchemy and drivers raise errors of their own.
        yield Finding(
            Status.SKIPPED,
            f"Airflow's database cannot be read from here: {_first_line(error)}",
            "run doctor where the scheduler or the API server runs",
        )
        return
    if found is None:
        yield Finding(
            Status.FAILED, "no triggerer was ever started", "run `airflow triggerer`: deferrable tasks wait for it"
        )
        return
    is_alive, heartbeat = found
    when = "unknown" if heartbeat is None else f"{heartbeat:%Y-%m-%d %H:%M:%S} UTC"
    if is_alive:
        yield Finding(Status.OK, f"alive, last heartbeat {when}")
    else:
        yield Finding(
            Status.FAILED,
            f"no triggerer is alive; the last heartbeat was {when}",
            "start `airflow triggerer`: deferrable tasks wait for it",
        )


# ---- Webhooks


def _webhook_secret(setup: Setup) -> Iterator[Finding]:
    if setup.settings is None:
        yield _skipped("connection")
        return
    if not setup.settings.webhook_secret:
        yield Finding(Status.SKIPPED, "the connection has no `webhook_secret`: it takes no webhooks")
        return
    try:
        number = len(signing_secrets(setup.settings.webhook_secret))
    except RoughyConfigurationError as error:
        yield Finding(Status.FAILED, str(error), "copy the whole value from Roughy's dashboard")
        return
    named = webhook_conn_ids()
    if setup.args.conn_id not in named:
        yield Finding(
            Status.FAILED,
            f"[roughy] webhook_conn_ids is {', '.join(named)}, without {setup.args.conn_id}",
            "add the connection there, and restart the API server",
        )
        return
    yield Finding(Status.OK, f"{counted(number, 'signing secret')}; the connection is in [roughy] webhook_conn_ids")


def _webhook_route(setup: Setup) -> Iterator[Finding]:
    settings = setup.settings
    try:
        has_secret = settings is not None and bool(signing_secrets(settings.webhook_secret or ""))
    except RoughyConfigurationError:
        has_secret = False
    if settings is None or not has_secret:
        yield _skipped("webhook secret")
        return
    if AIRFLOW_VERSION.startswith("2."):
        yield Finding(
            Status.FAILED, "Airflow 2 has no route for webhooks", "wait with RoughyAssetSensor, or upgrade to Airflow 3"
        )
        return
    answer = send_test(settings, setup.args.webhook_url or route())
    if answer.ok:
        yield Finding(Status.OK, f"{answer.words}: {answer.meaning}")
    else:
        yield Finding(Status.FAILED, answer.words, answer.meaning)


def _webhook_asset(setup: Setup) -> Iterator[Finding]:
    settings = setup.settings
    if settings is None or not settings.webhook_secret or AIRFLOW_VERSION.startswith("2."):
        yield _skipped("webhook secret")
        return
    name = settings.webhook_asset
    try:
        dags = airflow_db.dags_started_by_asset(name)
    except Exception as error:  # As for the triggerer.
        yield Finding(Status.SKIPPED, f"Airflow's database cannot be read from here: {_first_line(error)}")
        return
    if dags is None:
        yield Finding(
            Status.FAILED,
            f"no active DAG declares the Airflow asset {name!r}, which webhooks make events of",
            f"give a DAG `schedule=[Asset({name!r})]`, or name its asset in `webhook_asset` of the extra",
        )
        return
    active = [dag_id for dag_id, is_paused in dags.items() if not is_paused]
    if dags and not active:
        yield Finding(
            Status.FAILED, f"all DAGs that {name!r} starts are paused: {', '.join(dags)}", "unpause one of them"
        )
    elif not dags:
        yield Finding(Status.WARNING, f"{name!r} starts no DAG", f"give a DAG `schedule=[Asset({name!r})]`")
    else:
        yield Finding(Status.OK, f"{name!r} starts {', '.join(active)}")


def _skipped(needs: str) -> Finding:
    return Finding(Status.SKIPPED, f"the check `{needs}` has to pass first")


def _first_line(error: Exception) -> str:
    text = re.sub(r"://[^\s@/]*@", "://…@", str(error).strip())
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


#: The checks, in this order.
CHECKS: dict[str, Callable[[Setup], Iterator[Finding]]] = {
    "connection": _connection,
    "extra": _extra,
    "key": _key,
    "project": _project,
    "clock": _clock,
    "proxy": _proxy,
    "source": _source,
    "ledger": _ledger,
    "ledger's size": _ledger_size,
    "extras": _extras,
    "triggerer": _triggerer,
    "webhook secret": _webhook_secret,
    "webhook route": _webhook_route,
    "webhook asset": _webhook_asset,
}
