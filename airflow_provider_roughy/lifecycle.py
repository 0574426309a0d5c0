"""The states of Roughy's resources, what each means, and the verdict on one resource.

Only this module says what each state means to a task that waits. A resource moves from a waiting state to a final one::

    asset:  pending_upload -> processing -> ready
                                        |-> pending_payment -> ready     (automatically, on the next top-up)
                                        |-> failed
    cut:    pending -> processing -> completed
                                 |-> failed
    render: the same, and cancelled from either waiting state

A state that is not in the table counts as waiting: Roughy may add one, and the waiter's deadline bounds the wait.

Nothing here touches the network or a clock.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, get_args
from uuid import UUID

from airflow_provider_roughy import api, exceptions
from airflow_provider_roughy.api import decode

# In 0.2, `as_seconds` and `counted` (below) were defined here.
from airflow_provider_roughy.arguments import as_seconds as as_seconds
from airflow_provider_roughy.arguments import check_choice
from airflow_provider_roughy.compat import AirflowSkipException
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAssetFailedError,
    RoughyConfigurationError,
    RoughyCutFailedError,
    RoughyError,
    RoughyPaymentRequiredError,
    RoughyProtocolError,
    RoughyRenderFailedError,
    RoughyTimeoutError,
    api_error,
)
from airflow_provider_roughy.logs import counted as counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from airflow_provider_roughy.api import Call, Page, Reply

#: What to do about an asset that is uploaded and measured, but not paid for.
OnPendingPayment = Literal["fail", "skip", "return", "wait"]


#: Characters of Roughy's reason that a verdict on one of many keeps.
_MAX_REASON = 300
#: Characters of an error's message that an event keeps.
_MAX_MESSAGE = 10_000


class Outcome(StrEnum):
    """What the state of a resource means for a task that waits for it."""

    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    PAYMENT_REQUIRED = "payment_required"
    #: The deadline passed first.
    TIMED_OUT = "timed_out"
    #: Its state cannot be read, and no other poll can read it: no such resource, or a rejected key.
    UNAVAILABLE = "refused"
    #: The name in 0.2. The value is in events of triggers that Airflow has stored.
    REFUSED = "refused"


@dataclass(frozen=True)
class Kind:
    """A kind of resource that can be waited for.

    :param name: Its name in Roughy's API.
    :param outcomes: The state table; waiting states in the order in which they follow each other.
    :param working: The most likely state of a resource that was not polled yet.
    :param get: Reads one, by its id.
    :param failed: The error of one that failed, called with its id.
    :param unpaid: The error of one that is not paid for, called with its id; ``None`` for a kind that costs nothing.
    :param list: Reads a page of those in one state, called with ``state`` and ``offset``; ``None`` if the API has no
        such list.
    """

    name: str
    outcomes: Mapping[str, Outcome]
    working: str
    get: Callable[[str], Call[Any]]
    failed: Callable[..., RoughyError]
    unpaid: Callable[..., RoughyError] | None = None
    list: Callable[..., Call[Page[Any]]] | None = None

    @property
    def ends(self) -> tuple[str, ...]:
        """The final states, the usual one first."""
        usual_first = sorted(self.outcomes.items(), key=lambda row: row[1] is not Outcome.SUCCEEDED)
        return tuple(state for state, outcome in usual_first if outcome is not Outcome.WAITING)

    def may_be_in(self, state: str, *, seen: str | None) -> bool:
        """Whether a resource may be on the list of a state: its last state, or a waiting state that follows it.

        :param state: The state of the list.
        :param seen: The last state of the resource; ``None`` if it was not polled yet.
        """
        seen = seen or self.working
        if seen == state or self.outcomes.get(seen) is not Outcome.WAITING:
            return seen == state
        waiting = [each for each, outcome in self.outcomes.items() if outcome is Outcome.WAITING]
        return state in waiting[waiting.index(seen) :]

    def read(self, id: str) -> Call[Any]:
        """Read one, and refuse a reply about another one.

        :param id: Its id, in any spelling of a UUID.
        :raises RoughyConfigurationError: If it is not a UUID.
        """
        call = self.get(id)

        def parse(reply: Reply) -> Any:
            found = call.parse(reply)
            if UUID(found.id) != UUID(id):
                raise ValueError(f"it is about {found.id!r}")
            return found

        return dataclasses.replace(call, parse=parse)


ASSET = Kind(
    name="asset",
    outcomes={
        "pending_upload": Outcome.WAITING,
        "processing": Outcome.WAITING,
        "ready": Outcome.SUCCEEDED,
        "failed": Outcome.FAILED,
        "pending_payment": Outcome.PAYMENT_REQUIRED,
    },
    working="processing",
    get=api.get_asset,
    failed=RoughyAssetFailedError,
    unpaid=RoughyPaymentRequiredError,
    list=api.list_assets,
)

#: The states of cuts and renders (API pages "Get a cut", "Read a render").
_OF_WORK = {
    "pending": Outcome.WAITING,
    "processing": Outcome.WAITING,
    "completed": Outcome.SUCCEEDED,
    "failed": Outcome.FAILED,
}

CUT = Kind(
    name="cut",
    outcomes=_OF_WORK,
    working="pending",
    get=api.get_cut,
    failed=RoughyCutFailedError,
    list=api.list_cuts,
)

RENDER = Kind(
    name="render",
    # Not in the API's list of states, but there is an event of that name (page "Webhooks").
    outcomes=_OF_WORK | {"cancelled": Outcome.FAILED},
    working="pending",
    get=api.get_render,
    failed=RoughyRenderFailedError,
    list=api.list_renders,
)

KINDS = {kind.name: kind for kind in (ASSET, CUT, RENDER)}


class Arrival(StrEnum):
    """The state of an asset's upload."""

    #: It waits for bytes.
    OPEN = "open"
    #: It waits for bytes, and has no upload that could take them.
    CLOSED = "closed"
    #: All bytes have arrived, whether or not Roughy could prepare them.
    ARRIVED = "arrived"

    @classmethod
    def of(cls, asset: Any) -> Arrival:
        """Return the state of an upload, by its asset. A missing URL alone does not prove that bytes arrived."""
        if asset.state != "pending_upload":
            return cls.ARRIVED
        return cls.OPEN if asset.upload_url is not None else cls.CLOSED


def check_on_pending_payment(value: str) -> None:
    """Refuse an unknown policy when the DAG is parsed.

    :raises ValueError: If there is no such policy.
    """
    check_choice("on_pending_payment", value, get_args(OnPendingPayment))


def end_unpaid(on_pending_payment: OnPendingPayment, error: RoughyError, *, why_skipped: str | None = None) -> None:
    """End a task because of unpaid assets, as ``on_pending_payment`` says; return if the task may continue.

    :param on_pending_payment: The policy.
    :param error: The error to raise if it is ``"fail"``.
    :param why_skipped: The message of the skip; by default that of the error.
    :raises RoughyError: The error, if the policy is ``"fail"``.
    :raises AirflowSkipException: If the policy is ``"skip"``.
    """
    if on_pending_payment == "fail":
        raise error
    if on_pending_payment == "skip":
        raise AirflowSkipException(why_skipped or str(error))


@dataclass(frozen=True)
class Verdict:
    """The result of waiting for one resource, as sensors, triggers, events and operators pass it on.

    :param id: The resource's id.
    :param outcome: What its state means.
    :param kind: The name of its :class:`Kind`.
    :param state: Its state, by Roughy's name; ``None`` if no poll succeeded.
    :param resource: Its fields without secrets, as they go to XCom.
    :param request_id: The ``X-Request-Id`` of the reply.
    :param error: The error of an unavailable resource, or the last transient error before a timeout, as plain JSON.
    """

    id: str
    outcome: Outcome
    kind: str
    state: str | None = None
    resource: dict[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    error: dict[str, Any] | None = None

    @classmethod
    def of(cls, kind: Kind, resource: Any) -> Verdict:
        """Return the verdict on a resource that was just read.

        :param kind: Its kind.
        :param resource: The resource, with ``id``, ``state``, ``request_id`` and ``to_dict()``.
        """
        return cls(
            id=resource.id,
            outcome=kind.outcomes.get(resource.state, Outcome.WAITING),
            kind=kind.name,
            state=resource.state,
            resource=resource.to_dict(),
            request_id=resource.request_id,
        )

    @classmethod
    def unavailable(cls, kind: Kind, id: str, error: RoughyError) -> Verdict:
        """Return the verdict on a resource whose state no poll can read.

        :param kind: Its kind.
        :param id: Its id.
        :param error: The error of the poll.
        """
        return cls(id=id, outcome=Outcome.UNAVAILABLE, kind=kind.name, error=_error_to_dict(error))

    #: The name in 0.2.
    refused = unavailable

    @classmethod
    def timed_out(cls, kind: Kind, id: str, *, state: str | None, error: RoughyError | None) -> Verdict:
        """Return the verdict on a resource that was not in a final state before the deadline."""
        details = _error_to_dict(error) if error else None
        return cls(id=id, outcome=Outcome.TIMED_OUT, kind=kind.name, state=state, error=details)

    @property
    def known(self) -> bool:
        """Whether the state is in the table."""
        return self.state is None or self.state in KINDS[self.kind].outcomes

    def is_final(self, on_pending_payment: OnPendingPayment = "fail") -> bool:
        """Whether the wait is over.

        :param on_pending_payment: With ``"wait"``, an unpaid resource is waited for, as one in processing is.
        """
        if self.outcome is Outcome.PAYMENT_REQUIRED:
            return on_pending_payment != "wait"
        return self.outcome is not Outcome.WAITING

    def raise_for_failure(self, on_pending_payment: OnPendingPayment = "fail") -> None:
        """Raise the error of the outcome; return if the task may continue.

        :param on_pending_payment: What to do about an unpaid resource.
        :raises RoughyFailedError: If it failed; the subclass names its kind.
        :raises RoughyPaymentRequiredError: If it is unpaid and the policy is ``"fail"``.
        :raises AirflowSkipException: If it is unpaid and the policy is ``"skip"``.
        :raises RoughyTimeoutError: If the deadline passed first.
        :raises RoughyError: If it is unavailable.
        """
        kind = KINDS[self.kind]
        if self.outcome is Outcome.FAILED:
            raise kind.failed(
                self.id,
                # An event of an earlier version may hold anything here.
                error_code=decode.text(self.resource.get("error_code"))
                or (None if self.state == "failed" else self.state),
                error_message=decode.text(self.resource.get("error_message")),
                request_id=self.request_id,
            )
        if self.outcome is Outcome.TIMED_OUT:
            reason = self.error["message"] if self.error else None
            raise RoughyTimeoutError(self.id, kind=self.kind, state=self.state, reason=reason)
        if self.outcome is Outcome.UNAVAILABLE:
            unknown = f"The state of {self.kind} {self.id} cannot be read. The triggerer's log says why"
            raise _error_from_dict({"message": unknown} | (self.error or {}))
        if self.outcome is Outcome.PAYMENT_REQUIRED and kind.unpaid:
            end_unpaid(on_pending_payment, kind.unpaid(self.id, request_id=self.request_id))

    def brief(self) -> Verdict:
        """Return it for a batch: of the resource's fields, only the duration or the reason of a failure stay."""
        if self.outcome is not Outcome.FAILED:
            duration = self.resource.get("duration_seconds")
            kept = {} if duration is None else {"duration_seconds": duration}
            return dataclasses.replace(self, resource=kept, request_id=None)
        names = ("error_code", "error_message")
        reason = {name: decode.text(self.resource.get(name), limit=_MAX_REASON) or None for name in names}
        return dataclasses.replace(self, resource=reason)

    def to_event(self) -> dict[str, Any]:
        """Return plain JSON for a trigger's event, which Airflow logs and stores in plain text."""
        return {
            "status": self.outcome.value,
            "kind": self.kind,
            "id": self.id,
            "state": self.state,
            "resource": self.resource,
            "request_id": self.request_id,
            "error": self.error,
        }

    @classmethod
    def from_event(cls, event: dict[str, Any] | None) -> Verdict:
        """Read a trigger's event back.

        :raises RoughyProtocolError: If it is not an event of this package: a lost event never counts as success.
        """
        try:
            if event is None:
                raise ValueError("it is empty")
            return cls(
                id=event["id"],
                outcome=Outcome(event["status"]),
                kind=KINDS[event["kind"]].name,
                state=event["state"],
                resource=event["resource"],
                request_id=event["request_id"],
                error=event["error"],
            )
        except (KeyError, TypeError, ValueError) as err:
            raise _unreadable_event(err) from err


def batch_to_event(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Return verdicts as plain JSON for the one event of a batch: about 50 bytes each, equal verdicts together.

    Of a resource's fields it has only the duration, in ``durations`` beside ``ids``, or the reason of a failure.
    """
    alike: dict[str, dict[str, Any]] = {}
    for verdict in map(Verdict.brief, verdicts):
        row = verdict.to_event()
        id, duration = row.pop("id"), verdict.resource.get("duration_seconds")
        row["resource"] = {name: value for name, value in verdict.resource.items() if name != "duration_seconds"}
        group = alike.setdefault(json.dumps(row, sort_keys=True), {**row, "ids": [], "durations": []})
        group["ids"].append(id)
        group["durations"].append(duration)
    for group in alike.values():
        if not any(group["durations"]):
            del group["durations"]
    return {"batch": list(alike.values())}


def batch_from_event(event: dict[str, Any] | None) -> list[Verdict]:
    """Read the event of a batch back.

    :raises RoughyProtocolError: If it is not an event of this package.
    """
    try:
        rows = (event or {})["batch"]
        return [
            Verdict.from_event(
                {**row, "id": id, "resource": {**row["resource"], **({"duration_seconds": d} if d else {})}}
            )
            for row in rows
            # 0.2 kept no durations.
            for id, d in zip_longest(row["ids"], row.get("durations", ()))
        ]
    except (KeyError, TypeError) as err:
        raise _unreadable_event(err) from err


def _unreadable_event(error: Exception) -> RoughyProtocolError:
    why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return RoughyProtocolError(
        f"The trigger's event cannot be read: {why}. Does the triggerer run the same version of "
        "airflow-provider-roughy as this worker? Then clear the task, which polls again"
    )


def _error_to_dict(error: RoughyError) -> dict[str, Any]:
    # Not all of it comes from a reply: a certificate or a path may be quoted too.
    message = decode.text(str(error), limit=_MAX_MESSAGE)
    if isinstance(error, RoughyApiError):
        return {"message": message, "api": error.to_dict()}
    return {"message": message, "class": type(error).__name__}


def _error_from_dict(error: dict[str, Any]) -> RoughyError:
    if "api" in error:
        found = api_error(**error["api"])
        # The text names what the fields do not, such as the connection.
        found.args = (error.get("message") or str(found),)
        return found
    cls = getattr(exceptions, error.get("class", ""), RoughyConfigurationError)
    return cls(error.get("message", ""))
