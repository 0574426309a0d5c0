"""Faults as data: which request fails, and how.

A rule counts the requests that match its method and path from its injection on, including requests that another rule
answers. It applies to the ``nth`` of them and the following ones, ``times`` in all. If several rules apply to a
request, the one injected first is used. Nothing is random, so a test sees the same faults every time.
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

#: Beyond any count of requests or bytes.
_MAX = 1 << 60

#: Key of an ASGI scope: the request must not complete an upload (:attr:`Fault.miss_end`).
MISS_END = "roughy.miss_end"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One rule.

    ``delay`` comes first, alone or with any of the others. Then the first of ``drop``, ``hang``, ``garbage``,
    ``swallow``, ``status`` that is set replies instead of the emulator: the request is not processed. Otherwise the
    request is processed, subject to the rest.

    :param method: HTTP method, or ``*``.
    :param path: Glob on the path without its query, for example ``/v1/uploads/*``.
    :param nth: The first matching request that fails, counted from 1.
    :param times: How many requests in a row fail; ``None`` for all.
    :param status: Reply with this status.
    :param headers: Headers of that reply, for example ``{"Retry-After": "1"}``.
    :param body: Its body: text, or an object sent as JSON; by default the error envelope that fits the status.
    :param delay: Seconds to wait before anything else.
    :param cut_after: Reset the connection after exactly so many bytes of the request's body were read. Bytes
        read before count as arrived (see ``Choices.keep_partial``). A shorter body is not affected.
    :param cut_reply_after: Close the connection after exactly so many bytes of the reply's body were sent. A shorter
        body is not affected.
    :param reply_rate: Send the reply's body at so many bytes per second.
    :param miss_end: Of an upload: store the bytes without completing the upload, like a server that is killed at that
        moment. The asset stays in ``pending_upload``, and ``HEAD`` returns the full offset, until another ``PATCH``
        ends there, which may be empty.
    :param lose_reply: Process the request completely, then reset the connection instead of replying.
    :param garbage: Reply 200 with an HTML page, as a captive portal does.
    :param hang: Never reply; read and discard the body until the client disconnects.
    :param drop: Reset the connection immediately.
    :param swallow: Read the body, store nothing, and reply 204: with the ``Upload-Offset`` that success would
        have (``True``), or with that of the request (``"unchanged"``).
    :param request_headers: Set these headers on the request before it is processed; a value ``None`` removes the
        header: ``{"Range": None}`` returns the whole file instead of a part.
    :param reply_headers: Set these headers on the reply, whatever it is; a value ``None`` removes the header.
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
        """Reject a rule that can never apply, so that a typing error does not silently mean "no fault"."""
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> Iterator[str]:
        """Yield the problems of the rule; later checks may rely on earlier ones."""
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
        for name, minimum, maximum in (
            ("nth", 1, _MAX),
            ("times", 1, _MAX),
            ("status", 200, 599),
            ("cut_after", 0, _MAX),
            ("cut_reply_after", 0, _MAX),
        ):
            value = getattr(self, name)
            if value is None and name != "nth":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
                yield f"{name} must be a whole number from {minimum} to {maximum}"
        for name, minimum in (("delay", 0), ("reply_rate", 1)):
            value = getattr(self, name)
            if value is None and name == "reply_rate":
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not minimum <= value <= 1e9:
                yield f"{name} must be a number from {minimum} to 1e9"
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
        """Create a rule from JSON.

        :param values: The fields by name.
        :raises ValueError: If a field is unknown, or a value has the wrong type.
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
        """Return whether the rule matches a request."""
        return self.method in ("*", method) and fnmatch.fnmatchcase(path, self.path)

    @property
    def answers(self) -> bool:
        """Whether the rule replies instead of the emulator."""
        return bool(self.drop or self.hang or self.garbage or self.swallow or self.status is not None)

    def reply_body(self, code: str) -> tuple[bytes, str]:
        """Return the body of the ``status`` reply and its content type.

        :param code: The error code to use in the default envelope.
        """
        if isinstance(self.body, str):
            return self.body.encode(), "text/plain; charset=utf-8"
        if self.status is not None and self.status < 400 and self.body is None:
            return b"", "application/json"
        default = {"error": {"code": code, "message": "Injected fault."}}
        return json.dumps(default if self.body is None else dict(self.body)).encode(), "application/json"


class FaultBook:
    """The rules in force, and how many requests each of them has matched."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[tuple[Fault, list[int]]] = []

    def inject(self, fault: Fault) -> None:
        """Add a rule, after the existing ones.

        :raises TypeError: If it is not a :class:`Fault`.
        """
        if not isinstance(fault, Fault):
            raise TypeError(f"a fault is a Fault, such as Fault(status=503), not {fault!r}")
        with self._lock:
            self._rules.append((fault, [0]))

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.clear()

    def strike(self, method: str, path: str) -> Fault | None:
        """Count a request and return the rule that applies to it, if any."""
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
