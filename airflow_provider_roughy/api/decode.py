"""Decode values from outside into values that every database of Airflow can store.

All values from outside are decoded here: replies of the API, webhooks, ledger entries, manifests. Each function takes
any value, raises no error, and returns a value of its type, or ``None``:

=================== ================================================================================================
Function            Returns
=================== ================================================================================================
:func:`text`        text without NUL and lone surrogates (U+FFFD stands in their place), shortened to a limit
:func:`integer`     a whole number that fits signed 64 bits
:func:`size`        an :func:`integer` that is not negative
:func:`number`      a finite ``float``
:func:`decimal`     a decimal number as text, such as ``"324.412"``
:func:`boolean`     ``True`` or ``False``
:func:`timestamp`   an ISO 8601 date-time, as a ``datetime`` in UTC
:func:`http_date`   the date of an HTTP header, as a ``datetime`` in UTC
:func:`identifier`  a UUID as Roughy spells it
:func:`texts`       a list of :func:`text`
:func:`plain`       any JSON, each part of it decoded, shortened where it is nested deeply or long
=================== ================================================================================================

:func:`loads` reads JSON for them: numbers that no database can store become ``None`` or text, and do not fail the rest.
If a function changes or discards a value, the caller has the original and logs it with :func:`report_once`.

Why not msgspec or pydantic, which Airflow installs? Both accept NUL and numbers of any size. Both reject a whole
document for one field of another type, and msgspec rejects it for half of a surrogate pair too. Airflow 2.11 has no
pydantic.

This module imports nothing of the package, and uses neither network nor clock.
"""

from __future__ import annotations

import json
import logging
import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID

#: Characters of a text; a longer one is shortened. It goes into logs, events and Airflow's database.
TEXT_LIMIT = 2000
#: The range of signed 64 bits. Databases and Airflow's messages between its processes cannot hold more.
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1

#: Levels of nested JSON that :func:`plain` keeps; Airflow's serialization of XComs ends at 20.
_MAX_LEVELS = 6
#: Members of each object and array that :func:`plain` keeps.
_MAX_MEMBERS = 100
#: Levels that are parsed of JSON that is nested too deeply for Python's parser.
_PARSED_LEVELS = 64
#: How many messages are remembered as logged.
_MAX_REPORTS = 10_000

#: Characters that PostgreSQL, UTF-8 or both reject in a text.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
#: Limited so that values calculated from it, such as credits, fit 64 bits as well.
_DECIMAL = re.compile(r"[+-]?([0-9]{1,15}(\.[0-9]{0,60})?|\.[0-9]{1,60})")
#: Python takes any character, NUL too, between a date and a time.
_TIMESTAMP = re.compile(r"[0-9W-]{8,10}([T ][0-9:.,+Z -]{2,50})?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: A string, whose brackets are ignored, or a bracket. A string without an end takes the rest: to search it again
#: from each of its quotes would take quadratic time.
_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)

_log = logging.getLogger(__name__)
_reported: set[object] = set()


def text(value: Any, *, limit: int = TEXT_LIMIT) -> str | None:
    """Return text that can be stored and logged, or ``None``. A number or a boolean becomes its text.

    :param value: Anything.
    :param limit: The maximum number of characters, at least 50; a longer text is shortened, and marked at its end.
    """
    if not isinstance(value, str):
        if isinstance(value, bool):
            return "true" if value else "false"
        if not isinstance(value, int | float) or number(value) is None:
            return None
        value = str(value)
    if len(value) > limit:
        value = f"{value[: limit - 40]}… ({len(value)} characters)"
    return UNSTORABLE.sub("\ufffd", value)


def integer(value: Any) -> int | None:
    """Return a whole number that fits signed 64 bits, or ``None``. Decimal digits as text count, and ``4.0``.

    :param value: Anything.
    """
    written = isinstance(value, str) and _INTEGER.fullmatch(value)
    if written or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if INTEGER_MIN <= value <= INTEGER_MAX else None


def size(value: Any) -> int | None:
    """Return a whole number from 0 that fits signed 64 bits, or ``None``.

    :param value: Anything.
    """
    found = integer(value)
    return None if found is None or found < 0 else found


def number(value: Any) -> float | None:
    """Return a finite number, or ``None``. A decimal number as text counts.

    :param value: Anything.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def decimal(value: Any) -> str | None:
    """Return a decimal number as text, as Roughy sends them, or ``None``.

    :param value: Anything.
    """
    found = text(value)
    return found if found is not None and _DECIMAL.fullmatch(found) else None


def boolean(value: Any) -> bool | None:
    """Return a boolean, or ``None``.

    :param value: Anything.
    """
    return value if isinstance(value, bool) else None


def timestamp(value: Any) -> datetime | None:
    """Return an ISO 8601 date-time in UTC, or ``None``. One without a zone is taken for UTC.

    :param value: Anything.
    """
    if not isinstance(value, str) or not _TIMESTAMP.fullmatch(value):
        return None
    try:
        found = datetime.fromisoformat(value)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (OverflowError, ValueError):
        return None


def http_date(value: Any) -> datetime | None:
    """Return the date of an HTTP header (RFC 9110, 5.6.7) in UTC, or ``None``. One without a zone is taken for UTC.

    :param value: Anything.
    """
    try:
        found = parsedate_to_datetime(value)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except Exception:  # For an invalid date, Python's parser may raise almost anything.
        return None


def identifier(value: Any) -> str | None:
    """Return a UUID in lower case, with its hyphens, or ``None``.

    :param value: Anything.
    """
    if not isinstance(value, str) or len(value) > 100:
        return None
    if _UUID.fullmatch(value):
        return value
    try:
        return str(UUID(value))
    except ValueError:
        return None


def texts(value: Any, *, limit: int = TEXT_LIMIT) -> list[str] | None:
    """Return a list of texts, without entries that are not text; ``None`` if it is not a list.

    :param value: Anything.
    :param limit: The maximum number of characters of each.
    """
    if not isinstance(value, list | tuple):
        return None
    return [found for each in value if (found := text(each, limit=limit)) is not None]


def plain(value: Any, *, levels: int = _MAX_LEVELS) -> Any:
    """Return JSON that can be stored: each part decoded, ``None`` for deeper levels, the first 100 members of each.

    :param value: Any JSON.
    :param levels: How many levels of objects and arrays to keep.
    """
    if isinstance(value, dict):
        if levels <= 0:
            return None
        members = list(value.items())[:_MAX_MEMBERS]
        return {text(str(name)) or "": plain(member, levels=levels - 1) for name, member in members}
    if isinstance(value, list | tuple):
        return [plain(member, levels=levels - 1) for member in value[:_MAX_MEMBERS]] if levels > 0 else None
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return integer(value)
    return number(value) if isinstance(value, float) else text(value)


def loads(body: bytes | str) -> Any:
    """Read JSON.

    Numbers that no database can store do not fail the document: ``NaN`` and ``1e999`` become ``None``, whole numbers of
    more than 20 digits become text. Bytes that are not UTF-8 become U+FFFD, and too deeply nested parts ``None``.

    :param body: The document.
    :raises ValueError: If it is not JSON.
    """
    document = body.decode("utf-8-sig", "replace") if isinstance(body, bytes) else body
    try:
        return _JSON.decode(document)
    except RecursionError:
        pass
    try:
        return _JSON.decode(_without_depths(document))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def report_once(message: str, *args: object) -> None:
    """Log a warning, unless this process has logged the same one.

    :param message: As for a logger.
    :param args: As for a logger; values from outside must be decoded.
    """
    if (message, args) in _reported:
        return
    if len(_reported) >= _MAX_REPORTS:
        _reported.clear()
    _reported.add((message, args))
    _log.warning(message, *args)


def _without_depths(document: str) -> str:
    """Replace too deeply nested parts by ``null``."""
    kept: list[str] = []
    level = start = 0
    for found in _BRACKET.finditer(document):
        if found[0] in ("[", "{"):
            level += 1
            if level == _PARSED_LEVELS + 1:
                kept += [document[start : found.start()], "null"]
                start = len(document)
        elif found[0] in ("]", "}"):
            if level == _PARSED_LEVELS + 1:
                start = found.end()
            level -= 1
    return "".join([*kept, document[start:]])


def _whole(digits: str) -> int | str:
    # Python reads 4,300 digits at most, and fails the document for one more.
    return int(digits) if len(digits) <= 20 else digits


def _real(digits: str) -> float | None:
    found = float(digits)
    return found if math.isfinite(found) else None


#: ``strict`` would fail a document for a control character in a text.
_JSON = json.JSONDecoder(parse_int=_whole, parse_float=_real, parse_constant=lambda name: None, strict=False)
