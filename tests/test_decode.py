"""Values from outside are decoded once, into values that every database can store."""

from __future__ import annotations

import json
import logging
import math
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_roughy.api import decode

#: JSON as nobody should send it: NUL, halves of surrogate pairs, numbers of any size, wrong types, nesting.
ODD_TEXT = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    ["a\x00b", "\ud83d", "\udc00x", "x" * 5000, "17", "1e999", "NaN", "\N{GRINNING FACE}"]
)
ODD_NUMBER = (
    st.integers()
    | st.sampled_from([2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400, 1e20, -0.0, 4.0, math.inf, math.nan])
    | st.floats()
)
ODD_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | ODD_NUMBER | ODD_TEXT,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(ODD_TEXT, parts, max_size=4),
    max_leaves=12,
)


def storable(value: Any, *, levels: int = 20) -> bool:
    """Whether every database of Airflow's, and every message between its processes, holds a value."""
    if isinstance(value, dict):
        parts = [*value, *value.values()]
        return levels > 0 and all(storable(part, levels=levels - 1) for part in parts)
    if isinstance(value, list | tuple):
        return levels > 0 and all(storable(part, levels=levels - 1) for part in value)
    if isinstance(value, str):
        return "\x00" not in value and value == value.encode("utf-8", "ignore").decode()
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool) or (isinstance(value, int) and -(2**63) <= value < 2**63)


@given(ODD_JSON)
def test_any_value_is_decoded_into_its_type_or_none(value: Any) -> None:
    types: dict[Any, type] = {
        decode.text: str,
        decode.integer: int,
        decode.size: int,
        decode.number: float,
        decode.decimal: str,
        decode.boolean: bool,
        decode.timestamp: datetime,
        decode.http_date: datetime,
        decode.identifier: str,
        decode.texts: list,
    }
    for function, kind in types.items():
        found = function(value)
        assert found is None or type(found) is kind, function
        if kind is not datetime:
            assert storable(found)
        # What was decoded is decoded to itself: stored entries are read by the same functions.
        assert kind is datetime or function(found) == found
    assert storable(decode.plain(value))


@given(ODD_JSON)
def test_any_document_is_read_and_can_be_stored(value: Any) -> None:
    written = json.dumps(value, ensure_ascii=True)
    found = decode.plain(decode.loads(written.encode()))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("function", "value", "decoded"),
    [
        (decode.text, "a\x00b\ud83d", "a\ufffdb\ufffd"),
        (decode.text, "\U0001f600", "\U0001f600"),
        (decode.text, 17, "17"),
        (decode.text, True, "true"),
        (decode.text, {"a": 1}, None),
        (decode.text, 10**5000, None),
        (decode.text, "x" * 2001, "x" * 1960 + "… (2001 characters)"),
        (decode.integer, 2**63 - 1, 2**63 - 1),
        (decode.integer, 2**63, None),
        (decode.integer, 1e20, None),
        (decode.integer, 4585.0, 4585),
        (decode.integer, "4585", 4585),
        (decode.integer, "٤", None),
        (decode.integer, True, None),
        (decode.size, -1, None),
        (decode.number, "1e999", None),
        (decode.number, 10**400, None),
        (decode.number, "324.412", 324.412),
        (decode.decimal, 324.5, "324.5"),
        (decode.decimal, "NaN", None),
        (decode.boolean, 1, None),
        (decode.timestamp, "2026-05-02T08:54:52.423000Z", datetime(2026, 5, 2, 8, 54, 52, 423000, UTC)),
        (decode.timestamp, "2026-05-02T10:54:52", datetime(2026, 5, 2, 10, 54, 52, 0, UTC)),
        (decode.timestamp, "0001-01-01T00:00:00+14:00", None),
        (decode.timestamp, 1777712092, None),
        (decode.timestamp, "2026-05-02\x0008:54:52", None),
        (decode.timestamp, "2026-05-02 08:54:52.1+01:00", datetime(2026, 5, 2, 7, 54, 52, 100000, UTC)),
        (decode.decimal, "9" * 16, None),
        (decode.http_date, "Sat, 28 Nov 2026 22:00:00 GMT", datetime(2026, 11, 28, 22, 0, 0, 0, UTC)),
        (decode.http_date, "Sat, 28 Nov 2026 22:00:00 -0000", datetime(2026, 11, 28, 22, 0, 0, 0, UTC)),
        (decode.http_date, "Thu, 01 Jan 99999999999 00:00:00 GMT", None),
        (decode.http_date, None, None),
        (decode.identifier, "019DE7F7-3A52-74D1-9EEB-323E0BFB7BB9", "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"),
        (decode.identifier, "x", None),
        (decode.texts, ["asset.ready", None, [], 7], ["asset.ready", "7"]),
        (decode.plain, {"a\x00": [10**30, 1.5, None, True]}, {"a\ufffd": [None, 1.5, None, True]}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_values_are_decoded(function: Any, value: Any, decoded: Any) -> None:
    assert function(value) == decoded


def test_numbers_and_bytes_that_cannot_be_stored_fail_no_document() -> None:
    body = b'\xef\xbb\xbf{"a": 1e999, "b": NaN, "c": -Infinity, "d": "\xff\x00", "e": 1' + b"0" * 5000 + b"}"
    found = decode.loads(body)
    assert (found["a"], found["b"], found["c"]) == (None, None, None)
    assert decode.text(found["d"]) == "\ufffd\ufffd"
    assert decode.integer(found["e"]) is None


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"]": "\\"}", "a":'])
def test_deep_nesting_costs_its_own_value_only(opening: str) -> None:
    deep = opening * 100_000 + "1" + ("]" if opening == "[" else "}") * 100_000
    found = decode.loads(f'[{{"id": "a", "x": {deep}}}, {{"id": "b"}}]')
    assert [each["id"] for each in found] == ["a", "b"]
    assert storable(decode.plain(found))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b'"' + b"[" * 100_000, b"{}" + b"]" * 100_000])
def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode.loads(body)


def test_unfinished_text_below_deep_nesting_takes_linear_time() -> None:
    """Not a minute of a triggerer's event loop for 500 KB."""
    began = time.process_time()
    with pytest.raises(ValueError, match=r"."):
        decode.loads(b"[" * 100_000 + b'"' + rb"\"" * 200_000)
    assert time.process_time() - began < 5


def test_the_same_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for id in ("a", "b", "a"):
            decode.report_once("Field %s of asset %s is no text", "state", f"logged-once-{id}")
    assert len(caplog.records) == 2
