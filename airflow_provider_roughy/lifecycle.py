"""What each state of Roughy means, and the verdict on one resource.

This is the only place that knows the names of states. A resource walks from a waiting state to a final one::

    asset:  pending_upload -> processing -> ready
                                        |-> pending_payment -> ready     (by itself, on the next top-up)
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
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, get_args
from uuid import UUID

from airflow_provider_roughy import api, exceptions
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from airflow_provider_roughy.api import Call, Page, Reply

#: What to do about an asset that is uploaded and measured, but not paid for.
OnPendingPayment = Literal["fail", "skip", "return", "wait"]


#: Characters of Roughy's reason that a verdict on one of many keeps.
_LONGEST_REASON = 300


class Outcome(StrEnum):
    """What a look at a resource told."""

    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    PAYMENT_REQUIRED = "payment_required"
    #: The deadline passed first.
    TIMED_OUT = "timed_out"
    #: Roughy refused to tell, for good: wrong key, no such resource.
    REFUSED = "refused"


@dataclass(frozen=True)
class Kind:
    """A kind of resource that can be waited for.

    :param name: What Roughy calls it.
    :param outcomes: The state table; states of waiting in the order in which they follow each other.
    :param working: The state in which one that has never been seen most likely is.
    :param get: Reads one, by its id.
    :param failed: The error of one that failed, called with its id.
    :param unpaid: The error of one that is not paid for, called with its id; ``None`` for a kind that costs nothing.
    :param list: Reads a page of those in one state, called with ``state`` and ``offset``; ``None`` where the API has
        no such list.
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
        """The states in which there is nothing left to wait for, the usual one first."""
        usual_first = sorted(self.outcomes.items(), key=lambda row: row[1] is not Outcome.SUCCEEDED)
        return tuple(state for state, outcome in usual_first if outcome is not Outcome.WAITING)

    def may_be_in(self, state: str, *, seen: str | None) -> bool:
        """Whether one that waits may be on the list of a state: as seen last, or in one of waiting that follows.

        :param state: Whose list.
        :param seen: In which state it was seen last, ``None`` if it never was.
        """
        seen = seen or self.working
        if seen == state or self.outcomes.get(seen) is not Outcome.WAITING:
            return seen == state
        waiting = [each for each, outcome in self.outcomes.items() if outcome is Outcome.WAITING]
        return state in waiting[waiting.index(seen) :]

    def read(self, id: str) -> Call[Any]:
        """Read one, and take no answer about another one.

        :param id: Its id, in any spelling of a UUID.
        :raises RoughyConfigurationError: If that is no id.
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

#: The states of what is made of an asset (API pages "Get a cut", "Read a render").
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
    """What an asset says of its upload."""

    #: It waits for bytes.
    OPEN = "open"
    #: It waits for bytes, and has no upload that could take them.
    CLOSED = "closed"
    #: All bytes have arrived, whatever became of them.
    ARRIVED = "arrived"

    @classmethod
    def of(cls, asset: Any) -> Arrival:
        """Judge an asset as it was just read: by its state, for a missing URL is no proof that bytes arrived."""
        if asset.state != "pending_upload":
            return cls.ARRIVED
        return cls.OPEN if asset.upload_url is not None else cls.CLOSED


def check_on_pending_payment(value: str) -> None:
    """Refuse a policy that does not exist.

    :raises ValueError: At DAG parse, where a typing error is cheapest.
    """
    if value not in get_args(OnPendingPayment):
        raise ValueError(f"on_pending_payment must be one of {get_args(OnPendingPayment)}, not {value!r}")


def as_seconds(name: str, value: float | timedelta) -> float:
    """Return a length of time in seconds.

    :param name: What the user calls it.
    :param value: Seconds, or a ``timedelta``.
    :raises ValueError: At DAG parse, if it is no time, or not above 0.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= sys.float_info.max:
        raise ValueError(f"{name} must be a number of seconds above 0, or a timedelta, not {value!r}")
    return float(seconds)


def counted(number: int, what: str) -> str:
    """Count things in a log: ``1 asset``, ``1,000 assets``.

    :param number: How many.
    :param what: One of them.
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Verdict:
    """What is known of one resource: the one currency of poke, trigger, event and operator.

    :param id: The resource.
    :param outcome: What its state means.
    :param kind: The name of its :class:`Kind`.
    :param state: Its state in Roughy's words, or ``None`` if no look succeeded.
    :param resource: Its fields without secrets, as they go to XCom.
    :param request_id: The ``X-Request-Id`` of the answer.
    :param error: What made Roughy refuse, as plain JSON; or the last transient error before a timeout.
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
        """Judge a resource as it was just read.

        :param kind: What it is.
        :param resource: The reply: with ``id``, ``state``, ``request_id`` and ``to_dict()``.
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
    def refused(cls, kind: Kind, id: str, error: RoughyError) -> Verdict:
        """Judge a resource that Roughy refuses to show, for good."""
        return cls(id=id, outcome=Outcome.REFUSED, kind=kind.name, error=_error_to_dict(error))

    @classmethod
    def timed_out(cls, kind: Kind, id: str, *, state: str | None, error: RoughyError | None) -> Verdict:
        """Judge a resource that was not done before the deadline."""
        details = _error_to_dict(error) if error else None
        return cls(id=id, outcome=Outcome.TIMED_OUT, kind=kind.name, state=state, error=details)

    @property
    def known(self) -> bool:
        """Whether the state is in the table."""
        return self.state is None or self.state in KINDS[self.kind].outcomes

    def is_final(self, on_pending_payment: OnPendingPayment = "fail") -> bool:
        """Whether there is nothing left to wait for.

        :param on_pending_payment: With ``"wait"`` an unpaid resource is waited for, like one in processing.
        """
        if self.outcome is Outcome.PAYMENT_REQUIRED:
            return on_pending_payment != "wait"
        return self.outcome is not Outcome.WAITING

    def raise_for_failure(self, on_pending_payment: OnPendingPayment = "fail") -> None:
        """Raise what the outcome calls for; return if the task may go on.

        :param on_pending_payment: What to do about an unpaid resource, if it is of a kind that is paid for.
        :raises RoughyFailedError: If it failed; its subclass says what it is.
        :raises RoughyPaymentRequiredError: If it is unpaid and the policy is ``"fail"``.
        :raises AirflowSkipException: If it is unpaid and the policy is ``"skip"``.
        :raises RoughyTimeoutError: If the deadline passed first.
        :raises RoughyError: What Roughy refused with.
        """
        kind = KINDS[self.kind]
        if self.outcome is Outcome.FAILED:
            raise kind.failed(
                self.id,
                error_code=self.resource.get("error_code") or (None if self.state == "failed" else self.state),
                error_message=self.resource.get("error_message"),
                request_id=self.request_id,
            )
        if self.outcome is Outcome.TIMED_OUT:
            reason = self.error["message"] if self.error else None
            raise RoughyTimeoutError(self.id, kind=self.kind, state=self.state, reason=reason)
        if self.outcome is Outcome.REFUSED:
            raise _error_from_dict(self.error or {})
        if self.outcome is Outcome.PAYMENT_REQUIRED and kind.unpaid and on_pending_payment in ("fail", "skip"):
            error = kind.unpaid(self.id, request_id=self.request_id)
            if on_pending_payment == "fail":
                raise error
            raise AirflowSkipException(str(error))

    def brief(self) -> Verdict:
        """Return it as one of many, which keeps of the resource but the reason of a failure."""
        if self.outcome is not Outcome.FAILED:
            return dataclasses.replace(self, resource={}, request_id=None)
        words = {name: self.resource.get(name) or "" for name in ("error_code", "error_message")}
        return dataclasses.replace(
            self, resource={name: text[:_LONGEST_REASON] or None for name, text in words.items()}
        )

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

        :raises RoughyProtocolError: If it is none of ours, so that a lost event never counts as success.
        """
        try:
            if event is None:
                raise KeyError("no event")
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
            raise RoughyProtocolError(f"The trigger's event is not one of this package: {err}") from err


def batch_to_event(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Return verdicts as plain JSON for the one event of a batch: some 40 bytes each, those that say the same together.

    Of a resource's fields it keeps but the reason of a failure.
    """
    alike: dict[str, dict[str, Any]] = {}
    for verdict in map(Verdict.brief, verdicts):
        row = verdict.to_event()
        id = row.pop("id")
        alike.setdefault(json.dumps(row, sort_keys=True), {**row, "ids": []})["ids"].append(id)
    return {"batch": list(alike.values())}


def batch_from_event(event: dict[str, Any] | None) -> list[Verdict]:
    """Read the event of a batch back.

    :raises RoughyProtocolError: If it is none of ours.
    """
    try:
        rows = (event or {})["batch"]
        return [Verdict.from_event({**row, "id": id}) for row in rows for id in row["ids"]]
    except (KeyError, TypeError) as err:
        raise RoughyProtocolError(f"The trigger's event is not one of this package: {err}") from err


def _error_to_dict(error: RoughyError) -> dict[str, Any]:
    if isinstance(error, RoughyApiError):
        return {"message": str(error), "api": error.to_dict()}
    return {"message": str(error), "class": type(error).__name__}


def _error_from_dict(error: dict[str, Any]) -> RoughyError:
    if "api" in error:
        return api_error(**error["api"])
    cls = getattr(exceptions, error.get("class", ""), RoughyConfigurationError)
    return cls(error.get("message", "Roughy refused without a reason"))
