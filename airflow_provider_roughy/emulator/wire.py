"""Common parts of requests and replies: errors, ids, timestamps, and the reading of request values.

Sources: the error envelope, paging and field rules are those of Roughy's "List assets" page.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from fractions import Fraction
from typing import Any, TypeVar

T = TypeVar("T")

#: Converts a value of a request, or raises ``ValueError`` with the reason.
Reader = Callable[[object], T]

#: A problem of one request field: dotted path, message.
Problem = tuple[str, str]

#: The code of the closed ``ErrorCode`` enum for a status without a more specific one.
CODE_OF_STATUS: Mapping[int, str] = {
    400: "bad_request",
    401: "unauthenticated",
    402: "insufficient_credits",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    410: "gone",
    412: "precondition_failed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "validation_error",
    423: "account_locked",
    429: "rate_limited",
    500: "internal_error",
    502: "upstream_error",
    503: "upstream_unavailable",
    504: "upstream_unavailable",
}


class ApiError(Exception):
    """An error reply.

    :param status: HTTP status.
    :param message: One line, safe to show to users.
    :param code: Of the ``ErrorCode`` enum; by default the one of the status.
    :param fields: The invalid fields, of a 422.
    :param headers: Further reply headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        fields: Iterable[Problem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or code_of(status)
        self.fields = list(fields)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the documented envelope; ``fields`` is omitted unless there are any."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.fields:
            error["fields"] = [{"field": field, "message": message} for field, message in self.fields]
        return {"error": error}


def code_of(status: int) -> str:
    """Return the error code of a status that has no more specific one."""
    return CODE_OF_STATUS.get(status, "internal_error" if status >= 500 else "bad_request")


def invalid(*problems: Problem) -> ApiError:
    """Return the 422 for these fields."""
    return ApiError(422, "; ".join(f"{field}: {message}" for field, message in problems), fields=problems)


def uuid7(microseconds: int) -> str:
    """Return a version 7 UUID (RFC 9562, method 1): ids that are created later sort later.

    :param microseconds: The time of creation since the epoch; the part below a millisecond goes to ``rand_a``.
    """
    milliseconds, rest = divmod(microseconds, 1000)
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (rest * 4096 // 1000) << 64
    value |= 0b10 << 62 | int.from_bytes(os.urandom(8), "big") >> 2
    return str(uuid.UUID(int=value))


def timestamp(microseconds: int) -> str:
    """Return ISO 8601 in UTC with six digits and ``Z``, as in all documented examples."""
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{microseconds % 1_000_000:06d}Z"


def http_date(microseconds: int) -> str:
    """Return the date format of HTTP (RFC 9110), which TUS uses for ``Upload-Expires``."""
    return formatdate(microseconds / 1_000_000, usegmt=True)


def as_uuid(value: object) -> str:
    """Return a UUID in its canonical spelling, or raise ``ValueError`` with the reason."""
    try:
        return str(uuid.UUID(value if isinstance(value, str) else ""))
    except ValueError:
        raise ValueError("Input should be a valid UUID") from None


def as_text(minimum: int, maximum: int) -> Reader[str]:
    """Return a reader of strings with a number of characters within bounds."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError("Input should be a valid string")
        if not minimum <= len(value) <= maximum:
            raise ValueError(f"String should have {minimum} to {maximum} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("Input should be a valid string, without lone surrogates") from None
        return value

    return read


def as_integer(minimum: int, maximum: int | None = None) -> Reader[int]:
    """Return a reader of integers within bounds; a string must be plain digits (a query value)."""

    def read(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,1000}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("Input should be a valid integer")
        if value < minimum:
            raise ValueError(f"Input should be greater than or equal to {minimum}")
        if maximum is not None and value > maximum:
            raise ValueError(f"Input should be less than or equal to {maximum}")
        return value

    return read


def as_id(value: object) -> str:
    """Return an id: any text."""
    return as_text(1, 256)(value)


def as_fraction(text: object) -> Fraction:
    """Return a number that is not negative, written as ``25``, ``29.97`` or ``30000/1001``.

    It does not accept all that :class:`~fractions.Fraction` does: ``1e999999999`` would take hours.
    """
    if isinstance(text, (int, float, Fraction)) and not isinstance(text, bool) and 0 <= text <= 1e12:
        return Fraction(text)
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12}|/0*[1-9][0-9]{0,11})?", text):
        raise ValueError("Input should be a number")
    return Fraction(text)


def header_problem(name: object, value: object) -> str | None:
    """Return why a header cannot be sent; ``None`` if it can.

    :param value: ``None`` removes the header.
    """
    if not isinstance(name, str) or not isinstance(value, (str, type(None))):
        return "headers must be text"
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}", name):
        return f"headers: {name!r} is no name of a header"
    if value is None:
        return None
    if not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]{0,10000}", value) or value != value.strip(" \t"):
        return f"headers: the value of {name} must be one line of Latin-1 text, without spaces around it"
    if name.lower() == "content-length" and not re.fullmatch(r"[0-9]{1,18}", value):
        return "headers: Content-Length must be a number"
    if name.lower() == "transfer-encoding" and value.lower() != "chunked":
        return "headers: Transfer-Encoding must be chunked"
    return None


def as_one_of(options: Sequence[str]) -> Reader[str]:
    """Return a reader of one of the given words."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in options:
            raise ValueError("Input should be " + ", ".join(f"'{option}'" for option in options))
        return value

    return read


def as_language(value: object) -> str:
    """Return a lower-cased two-letter code (ISO 639-1), as ``POST /v1/assets`` documents it."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z]{2}", value):
        raise ValueError("Input should be a two-letter ISO 639-1 code")
    return value.lower()


def as_decimal(value: object) -> str:
    """Return a decimal number that is not negative, as text."""
    text = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        raise ValueError("Input should be a valid decimal")
    return text


def as_number(minimum: float, maximum: float) -> Reader[float]:
    """Return a reader of numbers within bounds."""

    def read(value: object) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise ValueError(f"Input should be a number from {minimum:g} to {maximum:g}")
        return value

    return read


def as_member(options: Sequence[int]) -> Reader[int]:
    """Return a reader of one of the given integers."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value not in options:
            raise ValueError("Input should be " + ", ".join(str(option) for option in options))
        return value

    return read


def as_object(value: object) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise ValueError("Input should be a valid object")
    return value


def read(readers: Mapping[str, Reader[Any]], values: Mapping[str, object]) -> dict[str, Any]:
    """Read all values with the readers of their names; null stays null.

    :raises ValueError: If a name has no reader, or a reader raises it.
    """
    if unknown := set(values) - set(readers):
        raise ValueError(f"unknown field {', '.join(sorted(unknown))}; known: {', '.join(readers)}")
    found = {}
    for name, value in values.items():
        try:
            found[name] = None if value is None else readers[name](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


class Fields:
    """Reads values from one part of a request and collects their problems.

    :param where: ``body``, ``query`` or ``path``: the root of the dotted field names.
    :param values: The raw values.
    """

    def __init__(self, where: str, values: Mapping[str, object]) -> None:
        self.where = where
        self.values = values
        self.problems: list[Problem] = []

    def required(self, name: str, reader: Reader[T]) -> T:
        """Read a required value; after a problem, the result is meaningless until :meth:`check`."""
        if name not in self.values:
            self.problems.append((f"{self.where}.{name}", "Field required"))
            return None  # type: ignore[return-value]
        return self._read(name, reader)

    def optional(self, name: str, reader: Reader[T]) -> T | None:
        """Read a value that may be missing or null."""
        return None if self.values.get(name) is None else self._read(name, reader)

    def check(self) -> None:
        """Raise the 422 if there was a problem."""
        if self.problems:
            raise invalid(*self.problems)

    def _read(self, name: str, reader: Reader[T]) -> T:
        try:
            return reader(self.values[name])
        except ValueError as error:
            self.problems.append((f"{self.where}.{name}", str(error)))
            return None  # type: ignore[return-value]


def parse_object(raw: bytes, *, malformed_status: int) -> dict[str, Any]:
    """Return the JSON object of a request body.

    :param raw: The body.
    :param malformed_status: The status for a body that is not JSON (:attr:`Choices.malformed_json_status`).
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        problems = [("body", "JSON decode error")] if malformed_status == 422 else []
        raise ApiError(malformed_status, "The request body is not valid JSON.", fields=problems) from None
    if not isinstance(value, dict):
        raise invalid(("body", "Input should be a valid object"))
    return value
