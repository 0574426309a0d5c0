"""A run: the order of the checks, and the removal of everything that they made, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from airflow_provider_roughy import __version__
from airflow_provider_roughy.conformance.checks import CHECKS, general
from airflow_provider_roughy.conformance.checks.events import subscribe
from airflow_provider_roughy.conformance.cleaning import leftovers, own, remove
from airflow_provider_roughy.conformance.fact import Fact
from airflow_provider_roughy.conformance.facts import FACTS
from airflow_provider_roughy.conformance.result import Report, Result, judge
from airflow_provider_roughy.conformance.session import STATUS_OF_CODE, NotTestable, Session, Stop, Unclear
from airflow_provider_roughy.conformance.workspace import Workspace

#: Seconds for the removal of everything.
_CLEANING_SECONDS = 120.0
_ORDER = {"free": 0, "finished": 1, "paid": 2, "webhook": 2}


def plan(host: str, *, max_credits: int, public_url: str | None, is_local: bool) -> list[str]:
    """Return what a run does and costs, in words."""
    pace = "without a pause, as it is this machine" if is_local else "at most two a second"
    lines = [
        f"This checks {sum(1 for each in FACTS if not each.unchecked)} facts of the API at {host}:",
        f"- about 200 requests, {pace}; it takes 2 to 10 minutes",
        "- it creates projects, assets and a webhook endpoint named `airflow-provider-roughy verify …`, and removes "
        "them at the end; it also removes those that an earlier run left behind",
        "- it reads the balance, the credit history and the profile, and keeps none of their values",
    ]
    if max_credits:
        lines.append(
            "- it uploads a file that cannot be read, which costs nothing, and then a recording of one second, which "
            "costs 1 credit; it cuts, exports and renders that, which costs nothing. It spends 1 credit at most"
        )
    else:
        lines.append(
            "- it costs nothing: no upload is completed. With --max-credits 1 it checks the rest, for 1 credit"
        )
    if public_url:
        lines.append("- it registers the URL of --public-url for webhooks, and removes it at the end")
    return lines


def in_order() -> list[Fact]:
    """Return the facts that have a check, in the order in which they are checked."""
    places = {each: place for place, each in enumerate(CHECKS)}
    last = {*general.AT_THE_END, "ready.refund"}
    checked = [each for each in FACTS if not each.unchecked]
    return sorted(
        checked, key=lambda each: (each.id in general.AT_THE_END, each.id in last, _ORDER[each.needs], places[each.id])
    )


def run(
    session: Session,
    workspace: Workspace,
    *,
    recorded: Mapping[str, Mapping[str, Any]] | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Check every fact, and remove what was made.

    :param session: Sends the requests.
    :param workspace: The resources of the run.
    :param recorded: The facts of an earlier run, which are expected instead.
    :param on_result: Called with each result.
    """
    began = time.monotonic()
    report = Report(session.settings.base_url, __version__, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    report.max_credits = workspace.max_credits
    try:
        remove(workspace, *leftovers(workspace))
        workspace.project()
        for fact in in_order():
            if fact.needs == "webhook" and workspace.public_url is None:
                result = Result(fact, fact.expected, "not testable", "it needs --public-url")
            elif fact.needs in ("paid", "webhook") and not workspace.max_credits:
                result = Result(fact, fact.expected, "not testable", "it needs --max-credits 1")
            else:
                if fact.needs == "finished":
                    # Before the recording is made. The checks of events say why it failed.
                    with suppress(NotTestable, Unclear):
                        subscribe(workspace)
                result = check(fact, workspace, (recorded or {}).get(fact.id))
            report.results.append(result)
            on_result(result)
    except (Stop, Unclear, NotTestable) as error:
        report.stopped = str(error)
    except KeyboardInterrupt:
        report.stopped = "interrupted"
    except Exception as error:
        report.stopped = f"an error in verify: {type(error).__name__}: {error}"
    finally:
        report.left_behind = _clean_up(session, workspace)
    report.seconds = time.monotonic() - began
    report.requests, report.throttled = session.notes.answered, session.notes.throttled
    report.news = {kind: sorted(names) for kind, names in session.notes.fields.items() if names}
    if codes := {code for code, _ in session.notes.statuses} - set(STATUS_OF_CODE):
        report.news["error codes"] = sorted(codes)
    report.states = dict(session.notes.states)
    return report


def check(fact: Fact, workspace: Workspace, recorded: Mapping[str, Any] | None = None) -> Result:
    """Check one fact.

    :raises Stop: If the run cannot continue.
    """
    workspace.session.request_id = None
    try:
        return judge(fact, CHECKS[fact.id](workspace), recorded)
    except NotTestable as error:
        return Result(fact, fact.expected, "not testable", str(error))
    except Unclear as error:
        return Result(fact, fact.expected, "not testable", f"could not say: {error}", is_unclear=True)
    except Stop:
        raise
    except Exception as error:  # A reply that no check foresees must not end the others.
        return Result(fact, fact.expected, "not testable", f"could not say: {type(error).__name__}", is_unclear=True)


def _clean_up(session: Session, workspace: Workspace) -> list[str]:
    """Remove what the run made; return what could not be removed."""
    session.end_in(_CLEANING_SECONDS)
    projects, endpoints = workspace.projects, workspace.endpoints
    try:
        try:
            projects, endpoints = own(workspace)
        except Exception as error:  # The lists cannot be read; what is known may be removable.
            left = remove(workspace, projects, endpoints)
            # A project whose reply was lost may exist as well.
            return left or [f"projects named {workspace.name}, if there are any: {error}"]
        return remove(workspace, projects, endpoints)
    except KeyboardInterrupt:
        return [f"projects named {workspace.name}: interrupted while they were removed"]
