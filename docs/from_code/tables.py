"""Tables in Markdown, made of what the code holds: states, errors, fields, options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

from airflow_provider_roughy import exceptions
from airflow_provider_roughy.compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.emulator.__main__ import _parser
from airflow_provider_roughy.emulator.control import Control
from airflow_provider_roughy.exceptions import ERRORS_BY_CODE, RoughyApiError, RoughyError, api_error
from airflow_provider_roughy.get_provider_info import CONFIG, CONN_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_roughy.ingest import Report
from airflow_provider_roughy.lifecycle import KINDS, Kind, OnPendingPayment, Outcome, Verdict

ROOT = Path(__file__).parent.parent.parent

#: What the reader can do about an error whose own ``hint`` does not say it. Subclasses inherit it.
ADVICE: dict[str, str] = {
    "RoughyError": "Read what the message says; then clear the task.",
    "RoughyConfigurationError": "Correct the connection or the argument that the message names.",
    "RoughyMissingConnectionError": "Create the connection, or see why its secrets backend does not answer.",
    "RoughyApiError": "Ask Roughy's support; it finds the request by the id that ends the message.",
    "RoughyNotFoundError": "See where the id comes from: another account, a deleted asset, an expired upload.",
    "RoughyConflictError": "Look at the state that the message names.",
    "RoughyValidationError": "Correct the field that the message names.",
    "RoughyRateLimitError": "Nothing at first. If it stays, see who else uses the key, and lower `parallel`.",
    "RoughyServerError": "Nothing at first. If it stays, ask Roughy's support, with the request id.",
    "RoughyUnreachableError": "Nothing at first. If it stays, look at the worker's network, proxy and name server.",
    "RoughyProtocolError": "See whether the base URL is Roughy's, and whether a proxy or login page answers.",
    "RoughyUntrustedUrlError": "Correct the base URL: Roughy's links must lead to its own host or to `roughy.ai`.",
    "RoughySourceError": "Nothing: the retry reads it anew. Against files that still grow there is `stable_for`.",
    "RoughyUnusableSourceError": "Correct the path or URI, its rights, or `source_conn_id`.",
    "RoughyLedgerError": "Nothing at first. If it stays, look at the storage of the ledger.",
    "RoughyUnusableLedgerError": "Choose a folder that all workers may write, outside what is ingested.",
    "RoughyLedgerEntryError": "Remove the file that it names; a recording that had an asset by then is uploaded again.",
    "RoughyClaimedError": "Nothing: a retry takes over what a dead run has left, ten minutes after it died.",
    "RoughyIngestError": "Nothing at first: the retry takes up only what is missing.",
    "RoughyIngestFailedError": "Read the table in the log, and mend or remove those files.",
    "RoughyTargetError": "Make room on the disk, or see whether the storage can be reached.",
    "RoughyUnusableTargetError": "Correct `target`, its rights, or `target_conn_id`.",
    "RoughyTargetExistsError": 'Choose another `target`, or `overwrite="replace"`.',
    "RoughyUploadError": "Nothing at first: the retry [goes on](guides/resume.md) where Roughy stands.",
    "RoughyUploadClosedError": "Nothing: the retry uploads to a new asset. With `asset_id`, leave that out.",
    "RoughyUnconfirmedUploadError": "Nothing: the retry asks again, and sends nothing that Roughy has.",
    "RoughyDownloadError": "Nothing at first: the retry downloads it anew.",
    "RoughyNotReadyError": "Put a sensor before it, or take the id from an operator that waits.",
    "RoughyFailedError": "Read Roughy's reason in the message: the same request finds the same failure.",
    "RoughyAssetFailedError": "Read Roughy's reason, mend the recording, then clear its upload.",
    "RoughyWebhookError": "Refuse the request. If it is Roughy's, see whether the secret is that of the endpoint.",
    "RoughyPaymentRequiredError": "Top up within 30 days: see [credits](guides/credits.md).",
    "RoughyTimeoutError": "See whether a triggerer runs; raise `timeout`, then clear the task, which looks again.",
}

#: What an outcome means to a reader.
MEANING: dict[Outcome, str] = {
    Outcome.WAITING: "still in work",
    Outcome.SUCCEEDED: "done",
    Outcome.FAILED: "it ended at Roughy without a result, for good",
    Outcome.PAYMENT_REQUIRED: "uploaded and measured, but the credits did not cover it",
    Outcome.TIMED_OUT: "the task's `timeout` came first",
    Outcome.REFUSED: "Roughy refused to tell: no such resource, or a refused key",
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
    """Say who tries again, if anybody: the request itself first, then Airflow."""
    if issubclass(error, (AirflowFailException, AirflowSensorTimeout)):
        return "not retried"
    return f"retried {'at once, then ' if may_pass(error) else ''}by Airflow"


def answers(error: type[RoughyError]) -> str:
    """Return the answers of Roughy that become such an error: codes, or statuses without a code of their own."""
    codes = [code for code, cls in ERRORS_BY_CODE.items() if cls is error]
    by_status = [str(status) for status in range(400, 500) if type(api_error("HEAD /", status=status)) is error]
    return ", ".join([*by_status, *(f"`{code}`" for code in codes)]) if len(by_status) < 30 else ""


def errors() -> str:
    """List every error: when it is raised, whether it is tried again, what to do."""
    rows = []
    for depth, error in of_the_tree():
        name = f"{{py:exc}}`~{error.__module__}.{error.__name__}`"
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
        return f"waits on; at `timeout` it {_raised(late, policy)}"
    return _raised(verdict, policy)


def _raised(verdict: Verdict, policy: OnPendingPayment) -> str:
    try:
        verdict.raise_for_failure(policy)
    except AirflowSkipException:
        return "is skipped"
    except RoughyError as error:
        name = type(error).__name__
        return f"fails with {{py:exc}}`~{type(error).__module__}.{name}`, {who_retries(type(error))}"
    if verdict.outcome is Outcome.PAYMENT_REQUIRED:
        return f"succeeds; the result has `state` `{verdict.state}` for a branch to look at"
    return "succeeds"


def batch_xcoms() -> str:
    """List what a batch leaves in XComs."""
    told = re.findall(r":param (\w+): ((?:.|\n    )*)", inspect.getdoc(Report) or "")
    rows = [(f"`{name}`", markdown(text)) for name, text in told if name in Report().to_dict()]
    return table(("XCom", "What it holds"), rows)


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
    """List the releases of Airflow that the suite runs on."""
    rows = []
    for path in (ROOT / "tests" / "constraints").glob("airflow-*.txt"):
        (release,) = re.findall(r"^apache-airflow==(\S+)", path.read_text(), re.MULTILINE)
        rows.append((path.stem.removeprefix("airflow-"), release))
    newest_first = sorted(rows, key=lambda row: [int(part) for part in row[0].split(".")], reverse=True)
    return table(("Airflow", "Tested with"), newest_first)


def emulator_options() -> str:
    """List the options of the emulator's command line."""
    rows = []
    for action in _parser()._actions[1:]:  # The first is --help.
        help_text = (action.help or "") % {"default": action.default}
        rows.append((" ".join(f"`{name}`" for name in action.option_strings), help_text))
    return table(("Option", "Meaning"), rows)


def emulator_routes() -> str:
    """List what the emulator can be steered by over HTTP."""
    routes = Control(Emulator())._index({})["routes"]
    rows = [(f"`{route['method']} {route['path']}`", route["does"]) for route in routes]
    return table(("Request", "Does"), rows)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table of Markdown."""
    lines = [list(head), *([cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(docstring: str) -> str:
    """Turn the words of a docstring, up to its fields, into Markdown."""
    words = docstring.partition("\n:")[0].strip()
    words = re.sub(r":(\w+):`([^`]+)`", r"{py:\1}`\2`", words)
    return re.sub(r"``([^`]+)``", r"`\1`", words)


#: By the names that pages know.
TABLES: dict[str, Callable[[], str]] = {
    "errors": errors,
    "outcomes": outcomes,
    "on-pending-payment": on_pending_payment,
    "connection": connection,
    "settings": settings,
    "batch-xcoms": batch_xcoms,
    "versions": versions,
    "emulator-options": emulator_options,
    "emulator-routes": emulator_routes,
}
