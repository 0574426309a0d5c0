"""Sends the requests of the checks: slowly enough, again after a fault, and with notes of what every reply had."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow_provider_roughy.api import Reply, Request, decode, retry_after
from airflow_provider_roughy.exceptions import RoughyApiError, RoughyError, RoughyUnreachableError
from airflow_provider_roughy.http.client import Client
from airflow_provider_roughy.settings import Address, Settings

#: The most requests a second to hosts other than this machine.
MAX_RATE = 2.0
#: How often a request is sent in all, if it meets faults that may pass.
_TRIES = 4
#: The longest ``Retry-After`` that is waited for, and the longest pause without one, in seconds.
_PATIENCE, _PAUSE = 60.0, 4.0

TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = {**TUS, "Content-Type": "application/offset+octet-stream"}

#: An error code and its status, by the error page; ``None`` where only the name of the code is known.
STATUS_OF_CODE: Mapping[str, tuple[int, ...]] = {
    "bad_request": (400, 405),
    "unauthenticated": (401,),
    "insufficient_credits": (402,),
    "forbidden": (403,),
    "not_found": (404,),
    "conflict": (409, 423),
    "gone": (410,),
    "precondition_failed": (412,),
    "payload_too_large": (413,),
    "unsupported_media_type": (415,),
    "validation_error": (422,),
    "account_locked": (423,),
    "rate_limited": (429,),
    "internal_error": (500,),
    "upstream_error": (502,),
    "upstream_unavailable": (503, 504),
    "asset_processing": (409,),
    "asset_payment_required": (409,),
    "asset_failed": (409,),
    "asset_not_ready": (409,),
    "modifier_not_ready": (409,),
    "unsupported_format": (409,),
    "frame_rate_required": (409, 422),
    "cut_not_proposed": (409,),
}


class Stop(Exception):
    """The run cannot continue. Its text says why."""


class Unclear(Exception):
    """A check could not be carried out because of a fault. Its text says which."""


class NotTestable(Exception):
    """A check does not apply here. Its text says why."""


class BreakOff(Exception):
    """Raised by the body of a request, to break it off."""


@dataclasses.dataclass
class Notes:
    """What the replies of a run had, besides what the checks observe.

    :param answered: The number of replies.
    :param throttled: The number of 429s.
    :param statuses: Error codes with their statuses.
    :param without_id: Requests whose reply had no ``X-Request-Id``.
    :param fields: Fields that are not documented, by resource.
    :param states: States that were seen, by resource.
    """

    answered: int = 0
    throttled: int = 0
    statuses: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    without_id: set[str] = dataclasses.field(default_factory=set)
    fields: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    states: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def saw_state(self, kind: str, state: object) -> None:
        """Note a state of a resource."""
        states = self.states.setdefault(kind, [])
        if isinstance(state, str) and state not in states:
            states.append(state)


class Session:
    """Sends requests with the key of a connection.

    :param settings: The connection.
    :param rate: The most requests a second; ignored for this machine, and never above :data:`MAX_RATE`.
    :param deadline: Seconds after which the run ends.
    :param sleep: Pauses for seconds.
    :param clock: Returns the time in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        rate: float = MAX_RATE,
        deadline: float = 1200.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        address = Address.of(settings.base_url)
        self.is_local = address is not None and address.is_loopback
        self.settings = settings
        self.client = Client(settings)
        self.notes = Notes()
        self.request_id: str | None = None
        self._interval = 0.0 if self.is_local else 1 / min(rate, MAX_RATE)
        self._next = 0.0
        self._end = clock() + deadline
        self._sleep = sleep
        self.clock = clock

    def send(
        self,
        method: str,
        target: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        anonymous: bool = False,
        again: bool = True,
        within: float | None = None,
    ) -> Reply:
        """Send a request, and return the reply, whatever its status.

        :param content: The body; of bytes, the length is sent.
        :param anonymous: Whether it is sent without the key.
        :param again: Whether it is sent again after a fault that may pass, although Roughy may have processed it. After
            a 429 it always is, unless its body can be read only once.
        :param within: Seconds that it may take.
        :raises Stop: If the key is rejected, or the time of the run is over.
        :raises Unclear: If there is no reply, or Roughy is busy or out of order.
        """
        fields = dict(headers or {})
        repeatable = content is None or isinstance(content, bytes)
        if isinstance(content, bytes):
            fields.setdefault("Content-Length", str(len(content)))
            content = [content]
        request = Request(
            method, target, params=dict(params or {}), json=json, headers=fields, content=content, anonymous=anonymous
        )
        for attempt in range(1, _TRIES + 1):
            problem, pause, may_repeat = "", min(_PAUSE, 0.5 * 2**attempt), again
            self.wait_for_turn()
            try:
                reply = self.client.send(request, within=within)
            except RoughyUnreachableError as error:
                problem = str(error)
            except RoughyError as error:
                raise Unclear(str(error)) from None
            else:
                self._note(request, reply)
                if reply.status == 401 and not anonymous:
                    raise Stop("Roughy rejected the API key (401): it was valid when the run started, or never was")
                if reply.status not in (429, 502, 503, 504):
                    return reply
                problem, may_repeat = f"{request}: {reply.status}", again or reply.status == 429
                asked = retry_after(reply)
                pause = pause if asked is None else asked
                if pause > _PATIENCE:
                    raise Stop(f"{problem}, with a Retry-After of {pause:.0f} s; run it again later")
            if not (repeatable and may_repeat) or attempt == _TRIES:
                break
            self._sleep(0.05 if self.is_local and pause <= _PAUSE and not problem.endswith("429") else pause)
        raise Unclear(problem)

    def wait_for_turn(self) -> None:
        """Pause until the rate allows another request.

        :raises Stop: If the time of the run is over.
        """
        now = self.clock()
        if now >= self._end:
            raise Stop("the run took too long")
        if self._interval:
            if self._next > now:
                self._sleep(self._next - now)
            self._next = max(now, self._next) + self._interval

    def pause(self, seconds: float) -> None:
        """Pause between two polls."""
        self._sleep(seconds)

    @contextmanager
    def download(
        self, url: str, headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[int, Mapping[str, str], bytes]]:
        """Read a signed link: its status, headers and body; of an error, the status only."""
        self.wait_for_turn()
        try:
            with self.client.download(url, headers=headers) as found:
                yield found.status, found.headers, b"".join(bytes(block) for block in found.blocks)
        except RoughyApiError as error:
            yield error.status, {}, b""
        except RoughyError as error:
            raise Unclear(str(error)) from None

    def end_in(self, seconds: float) -> None:
        """Allow so many more seconds, to clean up."""
        self._end = self.clock() + seconds

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _note(self, request: Request, reply: Reply) -> None:
        self.notes.answered += 1
        self.request_id = reply.request_id
        if reply.request_id is None:
            self.notes.without_id.add(f"{request.method} {reply.status}")
        if reply.status == 429:
            self.notes.throttled += 1
        code = code_of(reply)
        if reply.status >= 400 and code is not None:
            self.notes.statuses.add((code, reply.status))


def body_of(reply: Reply) -> Any:
    """Return the JSON of a reply; ``None`` if the body is not JSON."""
    try:
        return decode.loads(reply.body)
    except Exception:  # Whatever the error is, the body is not JSON.
        return None


def error_of(reply: Reply) -> dict[str, Any]:
    """Return the error of a reply; empty if it has none."""
    body = body_of(reply)
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def code_of(reply: Reply) -> str | None:
    """Return the error code of a reply."""
    code = error_of(reply).get("code")
    return code if isinstance(code, str) and len(code) <= 64 and code.isascii() else None


def answer(reply: Reply) -> str:
    """Return a reply in short: its status, and its error code if it has one."""
    code = code_of(reply) if reply.status >= 400 else None
    return f"{reply.status} {code}" if code else str(reply.status)


def refusal(reply: Reply, field: str) -> str:
    """Return a 422 in short: its status, and the expected field if it names that one.

    :param field: The field.
    """
    entries = error_of(reply).get("fields")
    names = [each.get("field") for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []
    if reply.status != 422:
        return answer(reply)
    shown = field if field in names else ", ".join(sorted(str(name)[:60] for name in names)) or "without fields"
    return f"422 {shown}"
