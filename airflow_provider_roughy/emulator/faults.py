"""Faults as data: which request is to go wrong, and how.

A rule counts the requests that its method and path match, from its injection on, whether or not another rule
answers them; it strikes from the ``nth`` of them, ``times`` times. When several rules would strike one request,
the one injected first does. Nothing is random, so a test sees the same faults every time.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import threading
from collections.abc import Mapping
from typing import Any, Literal


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
    lose_reply: bool = False
    garbage: bool = False
    hang: bool = False
    drop: bool = False
    swallow: bool | Literal["unchanged"] = False
    request_headers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    reply_headers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what could never work, so that a typing error is no silent "no fault"."""
        changes = [*self.request_headers.items(), *self.reply_headers.items()]
        texts = [*self.headers.items(), *((name, "" if value is None else value) for name, value in changes)]
        counts = (self.nth, self.times, self.status, self.cut_after, self.cut_reply_after)
        problems = [
            (not isinstance(self.method, str) or not isinstance(self.path, str), "method and path must be text"),
            (not all(isinstance(text, str) for pair in texts for text in pair), "headers must be text"),
            (not isinstance(self.body, (str, Mapping, type(None))), "body must be text or an object"),
            (not all(map(_is_whole, counts)), "numbers must be whole"),
            (not isinstance(self.delay, (int, float)) or not self.delay < 1e9, "delay must be a number of seconds"),
            (self.nth < 1, "nth counts from 1"),
            (self.times is not None and self.times < 1, "times must be at least 1, or None"),
            (self.status is not None and not 200 <= self.status <= 599, "status must be 200 to 599"),
            (self.delay < 0, "delay must not be negative"),
            (self.cut_after is not None and self.cut_after < 0, "cut_after must not be negative"),
            (self.cut_reply_after is not None and self.cut_reply_after < 0, "cut_reply_after must not be negative"),
            (not _is_rate(self.reply_rate), "reply_rate must be a number of at least 1"),
            (self.swallow not in (True, False, "unchanged"), "swallow must be true, false or 'unchanged'"),
            (self.method != self.method.upper(), "method must be upper case"),
        ]
        for wrong, message in problems:
            if wrong:
                raise ValueError(message)

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
        except (TypeError, AttributeError) as error:
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
        return json.dumps(default if self.body is None else self.body).encode(), "application/json"


def _is_rate(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and value >= 1)


def _is_whole(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


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
