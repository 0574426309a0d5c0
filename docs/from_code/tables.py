"""Tables in Markdown, made of what the code holds: states, errors, fields, options."""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from airflow_provider_roughy import exceptions, ingest
from airflow_provider_roughy.cli.definition import COMMANDS
from airflow_provider_roughy.compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow_provider_roughy.conformance.fact import Mark
from airflow_provider_roughy.conformance.facts import FACTS
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.emulator.__main__ import _parser
from airflow_provider_roughy.emulator.control import Control
from airflow_provider_roughy.exceptions import ERRORS_BY_CODE, RoughyApiError, RoughyError, api_error
from airflow_provider_roughy.get_provider_info import CONFIG, CONN_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_roughy.ingest.decide import Action, decide
from airflow_provider_roughy.ingest.discover import MEDIA
from airflow_provider_roughy.ingest.result import BatchResults, Status
from airflow_provider_roughy.instruments import INSTRUMENTS
from airflow_provider_roughy.lifecycle import KINDS, Kind, OnPendingPayment, Outcome, Verdict
from airflow_provider_roughy.operators import RoughyIngestOperator
from harness.storages.kinds import ERRORS, USES, Guarantee
from harness.storages.kinds import KINDS as STORAGES
from harness.storages.kinds import Kind as StorageKind

ROOT = Path(__file__).parent.parent.parent

#: What the reader can do about an error whose own ``hint`` does not say it. Subclasses inherit it.
ADVICE: dict[str, str] = {
    "RoughyError": "Read what the message says; then clear the task.",
    "RoughyConfigurationError": "Correct the connection or the argument that the message names.",
    "RoughyMissingConnectionError": "Create the connection, or check why its secrets backend does not answer.",
    "RoughyApiError": "Contact Roughy's support with the request id, which ends the message.",
    "RoughyNotFoundError": "Check the id: it may be of another account, a deleted asset or an expired upload.",
    "RoughyConflictError": "Look at the state that the message names.",
    "RoughyValidationError": "Correct the field that the message names.",
    "RoughyRateLimitError": "Nothing at first. If it persists, check who else uses the key, and lower `parallel`.",
    "RoughyServerError": "Nothing at first. If it persists, contact Roughy's support with the request id.",
    "RoughyUnreachableError": "Nothing at first. If it persists, check the worker's network, proxy and name server.",
    "RoughyProtocolError": "Check whether the base URL is Roughy's, and whether a proxy or login page answers.",
    "RoughyUntrustedUrlError": "Correct the base URL: Roughy's links must lead to its own host or to `roughy.ai`.",
    "RoughySourceError": "Nothing: the retry reads the file again. If files are still being written, set `stable_for`.",
    "RoughyUnusableSourceError": "Correct the path or URI, its permissions, or `source_conn_id`.",
    "RoughyLedgerError": "Nothing at first. If it persists, check the storage of the ledger.",
    "RoughyUnusableLedgerError": "Read [what stops a ledger](ledger.md#what-stops-a-ledger-from-being-used).",
    "RoughyLedgerEntryError": "Remove the object that it names. Roughy charges the recording again if it had an asset.",
    "RoughyClaimedError": "Nothing: a retry returns the asset, or supersedes the claim once the other run has ended.",
    "RoughyIngestError": "Nothing at first: the retry uploads only what is missing.",
    "RoughyIngestFailedError": (
        "Read the table in the log. The next run uploads a corrected file. A cleared task reports the same files "
        "again, unless you [forget](guides/nightly-folder.md#ingest-a-failed-file-again) them first."
    ),
    "RoughyProduceError": "Nothing at first: the retry makes only what is missing.",
    "RoughyProduceFailedError": "Read the table in the log, and [what each failure does](guides/produce.md). Correct "
    "the cause, and clear the task in that run.",
    "RoughyTargetError": "Free space on the disk, or check whether the storage can be reached.",
    "RoughyUnusableTargetError": "Correct `target`, its permissions, or `target_conn_id`.",
    "RoughyTargetExistsError": 'Choose another `target`, or `overwrite="replace"`.',
    "RoughyUploadError": "Nothing at first: the retry [resumes](guides/resume.md) the upload.",
    "RoughyUploadClosedError": "Nothing: the retry uploads to a new asset. Remove `asset_id` if you have set it.",
    "RoughyUnconfirmedUploadError": "Nothing: the retry reads the asset again, and sends nothing that Roughy has.",
    "RoughyDownloadError": "Nothing at first: the retry downloads the file again.",
    "RoughyInterruptedError": "Nothing: a person or Airflow has stopped the task. A retry starts from the beginning.",
    "RoughyNotReadyError": "Put a sensor before the task, or use an operator that waits.",
    "RoughyFailedError": "Read Roughy's reason in the message: the same request fails again.",
    "RoughyWebhookError": "Refuse the request. If Roughy sent it, check whether the secret is that of the endpoint.",
    "RoughyPaymentRequiredError": "Top up within 30 days: see [credits](guides/credits.md).",
    "RoughyTimeoutError": "Check whether a triggerer runs, raise `timeout`, then clear the task, which polls again.",
}

#: What an outcome means to a reader.
MEANING: dict[Outcome, str] = {
    Outcome.WAITING: "in progress",
    Outcome.SUCCEEDED: "done",
    Outcome.FAILED: "Roughy could not do it, and will not try again",
    Outcome.PAYMENT_REQUIRED: "uploaded and measured, but the credits did not cover it",
    Outcome.TIMED_OUT: "the task's `timeout` came first",
    Outcome.UNAVAILABLE: "the state cannot be read: no such resource, or a rejected key",
}


def of_the_tree() -> Iterator[tuple[int, type[RoughyError]]]:
    """Yield each error with its depth below :class:`RoughyError`, parents first, in the order of the module."""
    written = [each for each in vars(exceptions).values() if inspect.isclass(each) and issubclass(each, RoughyError)]

    def below(parent: type[RoughyError], depth: int) -> Iterator[tuple[int, type[RoughyError]]]:
        yield depth, parent
        for each in written:
            if parent in each.__bases__:
                yield from below(each, depth + 1)

    return below(RoughyError, 0)


def advice_on(error: type[RoughyError]) -> str:
    """Say what to do about an error: what its message ends with, or what stands above."""
    if error.hint:
        return f"{error.hint}."
    return next(ADVICE[each.__name__] for each in error.__mro__ if each.__name__ in ADVICE)


def may_pass(error: type[RoughyError]) -> bool:
    """Whether the request that met such an error is sent again before the task hears of it."""
    always = inspect.getattr_static(error, "transient") is True
    if always or not issubclass(error, RoughyApiError):
        return always
    told = [api_error("GET /", status=status, code=code) for status in range(400, 600) for code in (None, "?")]
    return any(each.transient for each in told if type(each) is error)


def who_retries(error: type[RoughyError]) -> str:
    """Say who retries after such an error, if anybody: the client first, then Airflow."""
    if issubclass(error, (AirflowFailException, AirflowSensorTimeout)):
        return "not retried"
    return f"retried {'by the client, then ' if may_pass(error) else ''}by Airflow"


def answers(error: type[RoughyError]) -> str:
    """Return the answers of Roughy that become such an error: codes, or statuses without a code of their own."""
    codes = [code for code, cls in ERRORS_BY_CODE.items() if cls is error]
    by_status = [str(status) for status in range(400, 500) if type(api_error("HEAD /", status=status)) is error]
    return ", ".join([*by_status, *(f"`{code}`" for code in codes)]) if len(by_status) < 30 else ""


def errors() -> str:
    """List every error: when it is raised, whether it is tried again, what to do."""
    rows = []
    for depth, error in of_the_tree():
        name = f"`{error.__name__}`"
        text = markdown(inspect.getdoc(error) or "")
        codes = answers(error) if issubclass(error, RoughyApiError) else ""
        met = f" *Answers: {codes}.*" if codes else ""
        rows.append(("&emsp;" * depth + name, text + met, f"**{_sentence(who_retries(error))}** {advice_on(error)}"))
    return table(("Error", "When", "What to do"), rows)


def outcomes() -> str:
    """List every state of every kind: what it means and what the task does."""
    rows = [
        (f"{kind.name} `{state}`", MEANING[outcome], _what_the_task_does(kind.name, state, outcome))
        for kind in KINDS.values()
        for state, outcome in kind.outcomes.items()
    ]
    return table(("State", "Meaning", "The task"), rows)


def on_pending_payment() -> str:
    """List every policy for what is not paid for."""
    unpaid = [
        (kind.name, state)
        for kind in KINDS.values()
        for state, outcome in kind.outcomes.items()
        if outcome is Outcome.PAYMENT_REQUIRED
    ]
    ((kind, state),) = unpaid
    rows = [
        (f'`"{policy}"`{" (default)" if policy == "fail" else ""}', _ended(kind, state, policy))
        for policy in get_args(OnPendingPayment)
    ]
    return table(("`on_pending_payment`", f"An asset in `{state}`: the task"), rows)


def _what_the_task_does(kind: str, state: str, outcome: Outcome) -> str:
    if outcome is Outcome.PAYMENT_REQUIRED:
        return f"does what `on_pending_payment` says: by default it {_ended(kind, state, 'fail')}"
    return _ended(kind, state, "fail")


def what_the_task_does(kind: Kind, state: str) -> list[str]:
    """Say the same in the few words that a figure has room for, a line each."""
    if kind.outcomes[state] is Outcome.PAYMENT_REQUIRED:
        return ["on_pending_payment:", " | ".join(get_args(OnPendingPayment))]
    try:
        Verdict("id", kind.outcomes[state], kind=kind.name, state=state).raise_for_failure()
    except RoughyError as error:
        return [f"the task fails, {who_retries(type(error))}:", f"`{type(error).__name__}"]
    return ["the task succeeds"]


def _ended(kind: str, state: str, policy: OnPendingPayment) -> str:
    """Say how a task ends at a state, by having the verdict end it."""
    outcome = KINDS[kind].outcomes[state]
    verdict = Verdict("id", outcome, kind=kind, state=state)
    if not verdict.is_final(policy):
        late = Verdict.timed_out(KINDS[kind], "id", state=state, error=None)
        return f"keeps waiting; at `timeout` it {_raised(late, policy)}"
    return _raised(verdict, policy)


def _raised(verdict: Verdict, policy: OnPendingPayment) -> str:
    try:
        verdict.raise_for_failure(policy)
    except AirflowSkipException:
        return "is skipped"
    except RoughyError as error:
        return f"fails with `{type(error).__name__}`, {who_retries(type(error))}"
    if verdict.outcome is Outcome.PAYMENT_REQUIRED:
        return f"succeeds; the result of a sensor has `state` `{verdict.state}`, for a branch to look at"
    return "succeeds"


def batch_xcoms() -> str:
    """List what a batch leaves in XComs."""
    listed = (inspect.getdoc(RoughyIngestOperator) or "").partition("\n===")[2].partition("\n===")[0]
    documented = re.findall(r"^``(\w+)`` +((?:.|\n {5,})*)", listed, re.MULTILINE)
    rows = [
        (f"`{name}`", markdown(re.sub(r"\s+", " ", text)))
        for name, text in documented
        if name in BatchResults().xcoms()
    ]
    return table(("XCom", "What it holds"), rows)


def left_out() -> str:
    """List when a batch leaves a file out: the table in the docstring of ``ingest``."""
    rows = rows_of(ingest.__doc__ or "")
    head = ("A file that …", "is", "A later run", "Decided in `ingest/`")
    return table(head, ([*map(markdown, row[:3]), re.sub(r"[\w.]+", r"`\g<0>`", row[3])] for row in rows))


def statuses() -> str:
    """List the statuses of a recording in a batch."""
    rows = rows_of(inspect.getdoc(Status) or "")
    return table(("Status", "Meaning"), ([markdown(cell) for cell in row] for row in rows))


#: What the ledger may have about a recording, and by which run, as arguments of :func:`decide`.
STANDINGS: tuple[tuple[str, str, dict[str, bool]], ...] = (
    ("nothing", "", {}),
    ("its result, which was reported", "an earlier try of this run", {"done": True, "reported": True}),
    ("its result, which was reported", "another run", {"done": True}),
    ("its result, not reported yet", "an earlier try of this run", {"done": True, "open": True, "mine": True}),
    ("its result, not reported yet", "another run, active", {"done": True, "open": True, "owner_alive": True}),
    ("its result, not reported yet", "an ended run of this task", {"done": True, "open": True, "same_task": True}),
    ("its result, not reported yet", "an ended run of another task", {"done": True, "open": True}),
    *(
        (claim, whose, {"open": True, **flags})
        for claim in ("a claim: uploading", "a claim: uploaded or unpaid")
        for whose, flags in (
            ("an earlier try of this run", {"mine": True}),
            ("another run, active", {"owner_alive": True}),
            ("an ended run of this task", {"same_task": True}),
            ("an ended run of another task", {}),
        )
    ),
)

#: What a run does, in words.
ACTIONS: dict[Action, str] = {
    Action.UPLOAD: "uploads it",
    Action.RESUME: "resumes it",
    Action.REPORT: "reports the result",
    Action.LEAVE_OUT: "leaves it out, and counts it as already ingested",
    Action.IGNORE: "does nothing",
}


def _in_words(action: Action, *, uploading: bool, mine: bool, found: bool) -> str:
    """Say what a run does, with what ``Recorder.leave`` and ``Batch._resume_all`` do about an incomplete upload."""
    if uploading and action is Action.LEAVE_OUT:
        return "leaves it out, as `deferred`"
    if uploading and action is Action.RESUME and not found:
        return "cancels the upload" if mine else "does nothing"
    return ACTIONS[action]


def decisions() -> str:
    """List what a batch does about each recording, by having ``ingest/decide.py`` decide it."""
    names = ("done", "open", "reported", "mine", "same_task", "owner_alive")
    rows = []
    for has, whose, flags in STANDINGS:
        known = {name: flags.get(name, False) for name in names}
        uploading = has == "a claim: uploading"
        rows.append(
            (
                has,
                whose,
                *(
                    _in_words(decide(found=found, **known), uploading=uploading, mine=known["mine"], found=found)
                    for found in (True, False)
                ),
            )
        )
    head = ("The ledger has", "written by", "The file is in the source: the run …", "It is not: the run …")
    return table(head, rows)


def media_names() -> str:
    """List the extensions of audio and video."""
    return ", ".join(f"`{name.removeprefix('*')}`" for name in MEDIA)


def connection() -> str:
    """List the fields of an Airflow connection."""
    told = {
        "password": f"`{UI_FIELD_BEHAVIOUR['placeholders']['password']}`, from Roughy's dashboard",
        "host": f"By default `{UI_FIELD_BEHAVIOUR['placeholders']['host']}`.",
    }
    rows = [
        (f"{label} (`{name}`)", "the connection", told[name])
        for name, label in UI_FIELD_BEHAVIOUR["relabeling"].items()
    ]
    rows += [(f"{field['label']} (`{name}`)", "the extra", field["description"]) for name, field in CONN_FIELDS.items()]
    return table(("Field", "In", "Meaning"), rows)


def settings() -> str:
    """List what Airflow's configuration may hold for this package."""
    rows = [
        (f"`[{section}] {name}`", option["default"] and f"`{option['default']}`", markdown(option["description"]))
        for section, of_section in CONFIG.items()
        for name, option in of_section["options"].items()
    ]
    return table(("Option", "Default", "Meaning"), rows)


def versions() -> str:
    """List the releases of Airflow that the suite runs on, and the Pythons of each."""
    rows = []
    pythons = dict(re.findall(r"^pythons_(\S+) *:= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (ROOT / "tests" / "constraints").glob("airflow-*.txt"):
        (release,) = re.findall(r"^apache-airflow==(\S+)", path.read_text(), re.MULTILINE)
        line = path.stem.removeprefix("airflow-")
        first, *others = pythons[line].split()
        rows.append((line, release, first, ", ".join(sorted(others, key=lambda version: int(version[2:])))))
    newest_first = sorted(rows, key=lambda row: [int(part) for part in row[0].split(".")], reverse=True)
    return table(("Airflow", "Tested with", "under Python", "also supported"), newest_first)


def emulator_options() -> str:
    """List the options of the emulator's command line."""
    return _options(_parser())


def facts() -> str:
    """List what is known of the API, and what is checked."""
    rows = [
        (f"`{each.id}`", f"[{each.mark}]({each.url})" if each.url else each.mark, each.text, each.promise)
        for each in FACTS
        if not each.unchecked
    ]
    return table(("Fact", "Known", "Says", "What rests on it"), rows)


def unchecked_facts() -> str:
    """List the facts that are not checked, each with the reason."""
    rows = [(f"`{each.id}`", each.mark, each.text, each.unchecked) for each in FACTS if each.unchecked]
    return table(("Fact", "Known", "Says", "Why it is not checked"), rows)


def fact_counts() -> str:
    """Count the facts by how reliably they are known."""
    marks = get_args(Mark)
    counts = Counter((str(each.mark), bool(each.unchecked)) for each in FACTS)
    rows = [(mark, str(counts[mark, False]), str(counts[mark, True])) for mark in marks]
    total = [str(sum(counts[mark, missing] for mark in marks)) for missing in (False, True)]
    return table(("Known", "Checked", "Not checked"), [*rows, ("all", *total)])


def _options(parser: ArgumentParser) -> str:
    rows = []
    for action in parser._actions[1:]:  # The first is --help.
        help_text = (action.help or "") % {"default": action.default}
        rows.append((" ".join(f"`{name}`" for name in action.option_strings), help_text))
    return table(("Option", "Meaning"), rows)


def emulator_routes() -> str:
    """List what the emulator can be steered by over HTTP."""
    routes = Control(Emulator())._index({})["routes"]
    rows = [(f"`{route['method']} {route['path']}`", route["does"]) for route in routes]
    return table(("Request", "Does"), rows)


def batches() -> str:
    """Repeat what a batch costs as one task and as many, which the page on scale has measured."""
    (measured,) = re.findall(
        r"(?ms)^## Batches\n\n(\|.*?)\n\n", (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    )
    return str(measured)


def _commands(commands: Iterable[Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each command of the command line with its full name, in alphabetical order."""
    for command in sorted(commands, key=lambda command: command.name):
        if hasattr(command, "subcommands"):
            yield from _commands(command.subcommands, f"{before}{command.name} ")
        else:
            yield f"{before}{command.name}", command


def commands() -> str:
    """List the commands of the command line, with what they take."""
    rows = []
    for name, command in _commands(COMMANDS):
        named = [arg for arg in command.args if not arg.flags[0].startswith("-")]
        words = [f"{arg.flags[0].upper()}{'…' if arg.kwargs.get('nargs') == '+' else ''}" for arg in named]
        given = [arg.flags[-1] for arg in command.args if arg.flags[0].startswith("-")]
        options = " ".join(f"`{flag}`" for flag in sorted(given) if flag != "--verbose")
        rows.append((f"`{' '.join([name, *words])}`", f"{command.help}.", options))
    return table(("Command", "Does", "Options"), rows)


def command_options() -> str:
    """List the arguments and options of the commands; one that several commands explain alike is listed once."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, command in _commands(COMMANDS):
        for arg in command.args:
            flags = " ".join(f"`{flag if flag.startswith('-') else flag.upper()}`" for flag in arg.flags)
            found.setdefault((flags, str(arg.kwargs.get("help", ""))), []).append(name)
    rows = []
    for (flags, words), names in sorted(found.items(), key=lambda item: item[0][0].split("`")[-2].lstrip("-")):
        of = "all" if flags == "`-v` `--verbose`" else ", ".join(f"`{name}`" for name in names)
        rows.append((flags, words if words.endswith("!") else f"{words}.", of))
    return table(("Argument or option", "Meaning", "Of"), rows)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table of Markdown."""
    lines = [list(head), *([cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(docstring: str) -> list[list[str]]:
    """Return the rows of the first simple table of reST in a docstring, without its head."""
    lines = docstring.splitlines()
    edge = next(line for line in lines if line.startswith("==="))
    edges = [number for number, line in enumerate(lines) if line == edge]
    first, last = edges[-2:]
    starts = [match.start() for match in re.finditer(r"=+", edge)]
    columns = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    rows: list[list[str]] = []
    for line in lines[first + 1 : last]:
        cells = [line[column].strip() for column in columns]
        # Every row has a second cell; a line without one continues the row above it.
        if cells[1]:
            rows.append(cells)
        else:
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
    return rows


def markdown(docstring: str) -> str:
    """Turn the words of a docstring, up to its fields, into Markdown."""
    words = docstring.partition("\n:")[0].strip()
    words = re.sub(r":\w+:`(?:~[\w.]*\.)?([^`]+)`", r"`\1`", words)
    return re.sub(r"``([^`]+)``", r"`\1`", words)


def metrics() -> str:
    """List every metric: its type, its tags with their values, and what it measures."""
    rows = [
        (
            f"`{each.name}`",
            each.type,
            "<br>".join(f"{tag}: {', '.join(f'`{value}`' for value in values)}" for tag, values in each.tags.items()),
            f"{each.meaning}.",
        )
        for each in INSTRUMENTS
    ]
    return table(("Metric", "Type", "Tags", "What it measures"), rows)


#: By the names that pages know.
def storages() -> str:
    """List what each storage guarantees for each use. `tests/storages` proves each cell on a server of that storage."""
    notes: list[str] = []

    def cell(kind: StorageKind, guarantee: Guarantee) -> str:
        differs, untested = kind.differs.get(guarantee), kind.untested.get(guarantee)
        if guarantee is Guarantee.NAMES and kind.odd_names:
            differs = "; ".join(kind.odd_names.values())
        if differs is None and untested is None:
            return "yes"
        notes.append(f"{len(notes) + 1}. {kind.title}: {differs or untested}.")
        return f"{'except' if differs else 'not tested'} ({len(notes)})"

    head = ("For", "Guarantee", *(f"{kind.title} `{kind.scheme}://`" for kind in STORAGES))
    used = [*USES.items(), ("all", ERRORS)]
    rows = [
        (use if not number else "", guarantee.value, *(cell(kind, guarantee) for kind in STORAGES))
        for use, guarantees in used
        for number, guarantee in enumerate(guarantees)
    ]
    rows.append(("", "tested with", *(kind.tested_with for kind in STORAGES)))
    return f"{table(head, rows)}\n\n" + "\n".join(notes)


def storage_connections() -> str:
    """List how each storage is connected."""
    rows = [
        (kind.title, *(f"`{text}`" if text else "" for text in (kind.provider, kind.uri, kind.connection)))
        for kind in STORAGES
    ]
    return table(("Storage", "Install", "URI", "Connection, as JSON"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "errors": errors,
    "outcomes": outcomes,
    "on-pending-payment": on_pending_payment,
    "command-options": command_options,
    "commands": commands,
    "connection": connection,
    "settings": settings,
    "batch-xcoms": batch_xcoms,
    "batches": batches,
    "decisions": decisions,
    "left-out": left_out,
    "media-names": media_names,
    "metrics": metrics,
    "statuses": statuses,
    "storages": storages,
    "storage-connections": storage_connections,
    "versions": versions,
    "emulator-options": emulator_options,
    "facts": facts,
    "unchecked-facts": unchecked_facts,
    "fact-counts": fact_counts,
    "emulator-routes": emulator_routes,
}
