"""What a check observes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.conformance.session import NotTestable, answer, body_of

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Reply
    from airflow_provider_roughy.conformance.workspace import Workspace

#: A check of one fact.
Check = Callable[["Workspace"], "Seen"]


@dataclass(frozen=True)
class Seen:
    """What a check observed. The fact holds if the text is the expected one.

    :param text: In short, without anything secret.
    :param request_id: Of the reply that shows it.
    :param holds: Whether the fact holds, if that is not decided by the text.
    :param value: Of a choice, the value of the emulator's option; ``None`` if no value agrees.
    """

    text: str
    request_id: str | None = None
    holds: bool | None = None
    value: Any = None


def saw(reply: Reply, text: str | None = None, *, holds: bool | None = None) -> Seen:
    """Return the observation of a reply.

    :param text: By default, its status and error code.
    """
    return Seen(answer(reply) if text is None else text, reply.request_id, holds)


def chose(value: Any, reply: Reply | None = None, text: str | None = None) -> Seen:
    """Return the observation of a choice.

    :param value: The value of the emulator's option; ``None`` if no value agrees.
    :param text: By default, the value.
    """
    from airflow_provider_roughy.conformance.fact import shown

    return Seen(shown(value) if text is None else text, reply.request_id if reply else None, value=value)


def chose_status(reply: Reply, allowed: Iterable[int] = ()) -> Seen:
    """Return the observation of a choice that is a status.

    :param allowed: The values of the option; by default, all 2xx.
    """
    options = tuple(allowed) or range(200, 300)
    return chose(reply.status if reply.status in options else None, reply, str(reply.status))


def names(value: object) -> str:
    """Return the field names of an object, sorted."""
    return ", ".join(sorted(value)) if isinstance(value, dict) else "no object"


def fields_of(workspace: Workspace, kind: str, reply: Reply, expected: str, body: Any = None) -> Seen:
    """Return which of the expected fields an object has. Further ones are noted, and do not differ.

    :param kind: The kind of the resource.
    :param expected: The expected names.
    :param body: The object; by default, the body of the reply.
    """
    found = body_of(reply) if body is None else body
    if not isinstance(found, dict):
        return saw(reply, f"{answer(reply)}, no object")
    documented = set(expected.split(", "))
    if extra := set(found) - documented:
        workspace.session.notes.fields.setdefault(kind, set()).update(str(name)[:64] for name in extra)
    missing = sorted(documented - set(found))
    return saw(reply, f"without {', '.join(missing)}" if missing else expected)


def require(condition: object, reason: str) -> None:
    """Raise unless a condition holds.

    :param reason: Why the check does not apply.
    :raises NotTestable: Otherwise.
    """
    if not condition:
        raise NotTestable(reason)
