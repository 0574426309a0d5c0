"""Faults as data: which request is to go wrong, and how.

A rule counts the requests that its method and path match, from its injection on, whether or not another rule
answers them; it strikes from the ``nth`` of them, ``times`` times. When several rules would strike one request,
the one injected first does. Nothing is random, so a test sees the same faults every time.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from .wire import header_problem

#: More than any request or byte is counted to.
_MOST = 1 << 60

#: Key of an ASGI scope: the request must not complete an upload (:attr:`Fault.miss_end`).
MISS_END = "roughy.miss_end"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One rule.

    ``delay`` comes first, alone or with any of the others. Then the first of ``drop``, ``hang``, ``garbage``,
    ``swallow``, ``status`` that is set answers instead of the emulator: the request is not processed. Otherwise it
    is processed, subject to the rest.

    :param method: HTTP method, or ``*``.
    :param path: glob on the path without its query, for example ``/v1/uploads/*``.
    :param nth: the first matching request that is struck, counted from 1.
    :param times: how many requests in a row are struck; ``None`` for ever.
    :param status: reply with this status.
    :param headers: headers of that reply, for example ``{"Retry-After": "1"}``.
    :param body: its body: text, or an object sent as JSON; by default the error envelope that fits the status.
    :param delay: seconds to wait before anything else.
    :param cut_after: the connection is reset once exactly so many bytes of the request's body were read. Bytes
        read before count as arrived (see ``Choices.keep_partial``). A body that is shorter passes unharmed.
    :param cut_reply_after: the connection is closed once exactly so many bytes of the reply's body were sent. A body
        that is shorter passes unharmed.
    :param reply_rate: the reply's body is sent at so many bytes a second.
    :param miss_end: of an upload: take the bytes, and do not notice that they are the last ones, as a server that is
        killed at that moment. The asset stays in ``pending_upload``, and ``HEAD`` tells the full offset, until another
        ``PATCH`` ends there, which may be empty.
    :param lose_reply: process the request wholly, then reset the connection instead of replying.
    :param garbage: reply 200 with an HTML page, as a captive portal does.
    :param hang: never answer; the body is read and thrown away, and the request ends when the client leaves.
    :param drop: reset the connection at once.
    :param swallow: read the body, store nothing, and reply 204: with the ``Upload-Offset`` that success would
        have (``True``), or with the one the request came with (``"unchanged"``).
    :param request_headers: set these headers on the request before it is processed; a value ``None`` removes the
        header: ``{"Range": None}`` gets the whole instead of a part.
    :param reply_headers: set these headers on whatever reply goes out; a value ``None`` removes the header.
    """

    method: str = "*"
    path: str = "*"
    nth: int = 1
    times: int | None = 1
    status: int | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: str | Mapping[str, Any] | None = None
    delay: float = 0.0
    cut_after: int | None = None
    cut_reply_after: int | None = None
    reply_rate: float | None = None
    miss_end: bool = False
    lose_reply: bool = False
    garbage: bool = False
    hang: bool = False
    drop: bool = False
    swallow: bool | Literal["unchanged"] = False
    request_headers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    reply_headers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what could never work, so that a typing error is no silent "no fault"."""
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> Iterator[str]:
        """Yield what is wrong; what comes later may rely on what comes first."""
        if not isinstance(self.method, str) or not isinstance(self.path, str):
            yield "method and path must be text"
        if self.method != self.method.upper():
            yield "method must be upper case"
        for fields in (self.headers, self.request_headers, self.reply_headers):
            if not isinstance(fields, Mapping):
                yield "headers must be an object"
            yield from filter(None, itertools.starmap(header_problem, fields.items()))
        if any(value is None for value in self.headers.values()):
            yield "headers must be text"
        for name, least, most in (
            ("nth", 1, _MOST),
            ("times", 1, _MOST),
            ("status", 200, 599),
            ("cut_after", 0, _MOST),
            ("cut_reply_after", 0, _MOST),
        ):
            value = getattr(self, name)
            if value is None and name != "nth":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                yield f"{name} must be a whole number from {least} to {most}"
        for name, least in (("delay", 0), ("reply_rate", 1)):
            value = getattr(self, name)
            if value is None and name == "reply_rate":
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= 1e9:
                yield f"{name} must be a number from {least} to 1e9"
        for name in ("miss_end", "lose_reply", "garbage", "hang", "drop"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} must be true or false"
        if not isinstance(self.swallow, bool) and self.swallow != "unchanged":
            yield "swallow must be true, false or 'unchanged'"
        if not isinstance(self.body, (str, Mapping, type(None))):
            yield "body must be text or an object"
        try:
            self.reply_body("bad_request")
        except (TypeError, ValueError, RecursionError) as error:
            yield f"body cannot be sent: {error}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fault:
        """Make a rule from JSON.

        :param values: the fields by name.
        :raises ValueError: for an unknown field or a value of a wrong type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"unknown field {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "headers": dict(self.headers),
            "request_headers": dict(self.request_headers),
            "reply_headers": dict(self.reply_headers),
        }

    def matches(self, method: str, path: str) -> bool:
        """Tell whether the rule is about such a request."""
        return self.method in ("*", method) and fnmatch.fnmatchcase(path, self.path)

    @property
    def answers(self) -> bool:
        """Whether the rule answers instead of the emulator."""
        return bool(self.drop or self.hang or self.garbage or self.swallow or self.status is not None)

    def reply_body(self, code: str) -> tuple[bytes, str]:
        """Return the body of the ``status`` reply and its content type.

        :param code: the error code to use in the default envelope.
        """
        if isinstance(self.body, str):
            return self.body.encode(), "text/plain; charset=utf-8"
        if self.status is not None and self.status < 400 and self.body is None:
            return b"", "application/json"
        default = {"error": {"code": code, "message": "Injected fault."}}
        return json.dumps(default if self.body is None else dict(self.body)).encode(), "application/json"


class FaultBook:
    """The rules in force and how many requests each of them has seen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[tuple[Fault, list[int]]] = []

    def inject(self, fault: Fault) -> None:
        """Put a rule in force, after those already there.

        :raises TypeError: for what is no rule, which would strike nothing but the emulator.
        """
        if not isinstance(fault, Fault):
            raise TypeError(f"a fault is a Fault, such as Fault(status=503), not {fault!r}")
        with self._lock:
            self._rules.append((fault, [0]))

    def clear(self) -> None:
        """Forget all rules."""
        with self._lock:
            self._rules.clear()

    def strike(self, method: str, path: str) -> Fault | None:
        """Count a request and return the rule that strikes it, if any."""
        struck: Fault | None = None
        with self._lock:
            for fault, seen in self._rules:
                if not fault.matches(method, path):
                    continue
                seen[0] += 1
                due = seen[0] >= fault.nth and (fault.times is None or seen[0] < fault.nth + fault.times)
                if due and struck is None:
                    struck = fault
        return struck

    def describe(self) -> list[dict[str, Any]]:
        """Return the rules with the number of requests each has matched."""
        with self._lock:
            return [fault.to_dict() | {"matched": seen[0]} for fault, seen in self._rules]
