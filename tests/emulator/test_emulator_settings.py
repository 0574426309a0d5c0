"""Invalid settings are rejected with a message: from Python, over HTTP and on the command line."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from airflow_provider_roughy.emulator.__main__ import main
from tests.emulator.api import Api

NAN, INFINITE = math.nan, math.inf

#: One client for all tests, since each client loads its certificates.
HTTP = httpx.Client(trust_env=False, timeout=60)


def works(roughy: Emulator) -> bool:
    """Whether the emulator answers what everybody asks."""
    paths = ("v1/credits/balance", "v1/assets", "v1/cuts", "v1/renders", "_emulator/state", "_emulator/faults")
    headers = {"Authorization": f"Bearer {roughy.api_key}"}
    return {HTTP.get(f"{roughy.url}/{path}", headers=headers).status_code for path in paths} == {200}


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    with HTTP, Emulator(progression="manual") as emulator:
        yield emulator


@pytest.fixture
def roughy(server: Emulator) -> Emulator:
    """One for all, since what is refused changes nothing."""
    server.reset()
    return server


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back the signal handlers that the command line sets."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


PROGRESSIONS = (
    "seconds=1e308",
    "seconds=1e200",
    "seconds=nan",
    "seconds=-inf",
    "seconds=1e11",
    "polls=99999999999999999999",
    "polls=1e3",
    f"polls={'9' * 5000}",
    f"seconds={'9' * 5000}",
    "seconds=1\r\n",
    "immediate=1",
)


@pytest.mark.parametrize("text", PROGRESSIONS, ids=lambda text: text[:20])
def test_progression_is_refused(roughy: Emulator, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    roughy.seed_asset("processing")
    if text != "seconds=1\r\n":
        with pytest.raises(ValueError, match="progression must be"):
            roughy.progression = text
        reply = HTTP.put(f"{roughy.url}/_emulator/progression", json={"progression": text})
        assert (reply.status_code, bool(reply.json()["problem"])) == (422, True)
        assert main(["--port", "0", "--progression", text]) == 2
        assert "Cannot start: progression must be" in capsys.readouterr().err
    assert works(roughy)


@pytest.mark.parametrize("text", [5, None, b"manual", ["manual"]], ids=str)
def test_progression_that_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="progression must be"):
        Emulator(progression=text)


@pytest.mark.parametrize("text", ["seconds=10000000000", "seconds=0.125", "polls=10000000000", "polls=1234567"])
def test_progression_at_its_bounds_works(roughy: Emulator, text: str) -> None:
    roughy.seed_asset("processing")
    roughy.seed_render("pending")
    roughy.progression = text
    assert roughy.progression == text
    assert works(roughy)


ODD_FAULTS: dict[str, dict[str, Any]] = {
    "line break in a value": {"headers": {"Retry-After": "1\r\nX-Evil: 1"}},
    "line feed in a value": {"reply_headers": {"X-A": "1\n2"}},
    "NUL in a value": {"request_headers": {"X-A": "\0"}},
    "text beyond Latin-1": {"headers": {"X-Name": "Ünïcode €"}},
    "lone surrogate": {"reply_headers": {"X-Name": "\ud800"}},
    "space around a value": {"headers": {"X-A": " 1"}},
    "name with a space": {"headers": {"X A": "1"}},
    "name with a line break": {"reply_headers": {"X\r\nY": "1"}},
    "name beyond ASCII": {"request_headers": {"X-Ü": "1"}},
    "no name": {"headers": {"": "1"}},
    "value that is none": {"headers": {"X-A": None}},
    "headers as a list": {"headers": [["X-A", "1"]]},
    "length that is no number": {"reply_headers": {"Content-Length": "many"}},
    "transfer encoding": {"headers": {"Transfer-Encoding": "gzip"}},
    "body that UTF-8 cannot hold": {"status": 503, "body": "\ud800"},
    "delay nan": {"delay": NAN},
    "delay without end": {"delay": INFINITE},
    "delay as a word": {"delay": "long"},
    "delay true": {"delay": True},
    "delay negative": {"delay": -0.1},
    "rate nan": {"reply_rate": NAN},
    "rate without end": {"reply_rate": INFINITE},
    "count as text": {"nth": "1"},
    "count without end": {"times": 10**30},
    "count none": {"nth": None},
    "status as a number with a point": {"status": 500.5},
    "cut beyond all bytes": {"cut_after": 10**30},
    "flag as a word": {"drop": "no"},
    "flag as a number": {"miss_end": 1},
    "swallow as a number": {"swallow": 1},
    "method as a number": {"method": 5},
}


@pytest.mark.parametrize("odd", ODD_FAULTS.values(), ids=ODD_FAULTS)
def test_fault_is_refused(roughy: Emulator, odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|cannot|is no name"):
        Fault(**odd)
    reply = HTTP.post(
        f"{roughy.url}/_emulator/faults", content=json.dumps(odd), headers={"Content-Type": "application/json"}
    )
    assert (reply.status_code, bool(reply.json()["problem"])) == (422, True)
    assert works(roughy)


@pytest.mark.parametrize("body", [{"a": object()}, {"a": {1, 2}}], ids=["object", "set"])
def test_fault_with_a_body_that_is_no_json_is_refused(body: Any) -> None:
    with pytest.raises(ValueError, match="body cannot be sent"):
        Fault(status=200, body=body)


@pytest.mark.parametrize(
    "odd",
    [
        {"status": 503, "body": {"a": NAN, "b": INFINITE, "c": 10**400, "d": "\ud800\0"}},
        {"path": "\ud800"},
        {"status": 304, "body": "text"},
        {"status": 204, "body": "text"},
        {"status": 503, "headers": {"X-Name": "Ünïcode", "X-Empty": ""}},
        {"status": 200, "body": "", "headers": {"Transfer-Encoding": "chunked"}},
    ],
    ids=str,
)
def test_fault_that_is_odd_and_works(roughy: Emulator, odd: dict[str, Any]) -> None:
    reply = HTTP.post(
        f"{roughy.url}/_emulator/faults", content=json.dumps(odd), headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 200
    assert HTTP.get(f"{roughy.url}/v1/assets").status_code == odd.get("status", 401)
    assert works(roughy)


def test_swallowed_request_with_an_odd_offset_is_answered(roughy: Emulator) -> None:
    roughy.inject(Fault(method="PATCH", swallow=True))
    reply = HTTP.patch(f"{roughy.url}/v1/uploads/x", headers={"Upload-Offset": "9" * 5000}, content=b"abc")
    assert (reply.status_code, reply.headers["Upload-Offset"]) == (204, "3")


SEEDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asset id as an object": ("cuts", {"asset_id": {}}),
    "asset id as a list": ("renders", {"asset_id": []}),
    "asset id as a number": ("cuts", {"asset_id": 10**30}),
    "cut id as a number": ("renders", {"cut_id": 5}),
    "cut id as an object": ("renders", {"cut_id": {"id": 1}}),
    "no id": ("cuts", {"asset_id": ""}),
    "segments without end": ("cuts", {"segments": [[0, INFINITE]]}),
    "segments nan": ("cuts", {"segments": [[0, NAN]]}),
    "segments beyond all numbers": ("cuts", {"segments": [[0, 10**400]]}),
    "segments with an exponent": ("cuts", {"segments": [[0, "1e999999999"]]}),
    "segments negative": ("cuts", {"segments": [[-1, 1]]}),
    "segments by zero": ("cuts", {"segments": [[0, "1/0"]]}),
    "frame rate with an exponent": ("cuts", {"frame_rate": "1e999999999"}),
    "frame rate nan": ("cuts", {"frame_rate": NAN}),
    "frame rate of an output nan": ("renders", {"output": {"format": "mp4", "frame_rate": NAN}}),
    "duration beyond all numbers": ("assets", {"duration_seconds": 1e308}),
    "duration nan": ("assets", {"duration_seconds": NAN}),
    "duration negative": ("assets", {"duration_seconds": -1}),
    "size negative": ("assets", {"size_bytes": -1}),
    "size with a point": ("assets", {"size_bytes": 1.5}),
    "size beyond 64 bits": ("renders", {"size_bytes": 1 << 64}),
    "account beyond 64 bits": ("assets", {"account": 1 << 64}),
    "text that UTF-8 cannot hold": ("assets", {"error_message": "\ud800"}),
    "state that UTF-8 cannot hold": ("assets", {"state": "\ud800"}),
    "script as a list": ("cuts", {"script": ["a"]}),
    "field with an odd name": ("assets", {"\ud800": 1}),
}


@pytest.mark.parametrize(("kind", "body"), SEEDS.values(), ids=SEEDS)
def test_seed_is_refused(roughy: Emulator, kind: str, body: dict[str, Any]) -> None:
    reply = HTTP.post(
        f"{roughy.url}/_emulator/{kind}", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert (reply.status_code, bool(reply.json()["problem"])) == (422, True)
    assert roughy.cuts == roughy.renders == []
    assert works(roughy)


def test_render_with_empty_content_is_refused(roughy: Emulator) -> None:
    with pytest.raises(ValueError, match="content must not be empty"):
        roughy.seed_render(content=b"")
    with pytest.raises(ValueError, match="content must be bytes"):
        roughy.seed_render(content="text")  # type: ignore[arg-type]
    assert roughy.renders == []


def test_segments_and_rates_in_all_their_spellings(roughy: Emulator) -> None:
    cut = roughy.seed_cut(segments=[(0, 1.5), ("2", Fraction(5, 2)), ("30000/1001", "31.25")], frame_rate="30000/1001")
    assert roughy.cut(cut)["segments"] == [(0.0, 1.5), (2.0, 2.5), (30000 / 1001, 31.25)]
    for rate in (25, 29.97, "24", "60000/1001"):
        roughy.seed_cut(frame_rate=rate)
    assert works(roughy)


def test_frame_rate_with_an_exponent_is_refused_by_an_export(roughy: Emulator, api: Api) -> None:
    cut = roughy.seed_cut()
    for rate in ("1e999999999", "nan", "1/0", "9" * 5000):
        reply = api.http.get(f"/v1/cuts/{cut}/export", params={"format": "edl", "frame_rate": rate})
        assert reply.status_code in (404, 409, 422), rate


STEPS: dict[str, Callable[[Emulator], object]] = {
    "advance nan": lambda roughy: roughy.advance(NAN),
    "advance without end": lambda roughy: roughy.advance(INFINITE),
    "advance by 1e308": lambda roughy: roughy.advance(1e308),
    "advance by 10^400": lambda roughy: roughy.advance(10**400),
    "advance by a word": lambda roughy: roughy.advance("1"),  # type: ignore[arg-type]
    "balance nan": lambda roughy: setattr(roughy, "balance", NAN),
    "balance 10^30": lambda roughy: setattr(roughy, "balance", 10**30),
    "balance true": lambda roughy: setattr(roughy, "balance", True),
    "top up nan": lambda roughy: roughy.top_up(NAN),  # type: ignore[arg-type]
    "top up nothing": lambda roughy: roughy.top_up(0),
    "flush nan": lambda roughy: roughy.flush_webhooks(NAN),
    "flush for ever": lambda roughy: roughy.flush_webhooks(1e308),
    "flush negative": lambda roughy: roughy.flush_webhooks(-1),
    "settle an object": lambda roughy: roughy.settle({}),  # type: ignore[arg-type]
    "look at a number": lambda roughy: roughy.asset(5),  # type: ignore[arg-type]
    "resend a list": lambda roughy: roughy.resend_webhook([]),  # type: ignore[arg-type]
    "state of nothing": lambda roughy: roughy.set_state(None, "ready"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_step_is_refused(roughy: Emulator, step: Callable[[Emulator], object]) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        step(roughy)
    assert works(roughy)


MADE: dict[str, dict[str, Any]] = {
    "balance 10^30": {"balance": 10**30},
    "balance nan": {"balance": NAN},
    "balance as text": {"balance": "5"},
    "port negative": {"port": -1},
    "port beyond all": {"port": 65536},
    "storage port as text": {"storage_port": "1"},
    "key with a line break": {"api_key": "sk_a\r\nX-Evil: 1"},
    "key with a space": {"api_key": "sk_a b"},
    "key beyond ASCII": {"api_key": "sk_€"},
    "key that is none": {"api_key": [None]},
    "key twice": {"api_key": ["sk_a", "sk_a"]},
    "no key": {"api_key": []},
    "choices as an object": {"choices": {"delete_status": 200}},
    "key as a number": {"api_key": 5},
    "no host": {"host": ""},
    "host with NUL": {"host": "local\0host"},
    "host that is none": {"host": None},
    "one fault": {"faults": Fault(status=503)},
    "no function": {"on_request": 5},
    "secret as a number": {"webhook_secret": 5},
    "authorities that are not there": {"webhook_verify": "/not/there.pem"},
    "authorities as a number": {"webhook_verify": 5},
}


@pytest.mark.parametrize("options", MADE.values(), ids=MADE)
def test_emulator_is_not_made(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        Emulator(**options)


CHOICES = (
    "upload_ttl_seconds=1e308",
    "upload_ttl_seconds=nan",
    "upload_ttl_seconds=-1",
    "unpaid_ttl_seconds=inf",
    "queued_seconds=1e200",
    "lock_wait_seconds=nan",
    "webhook_timeout_seconds=0",
    "webhook_off_after_seconds=1e300",
    "download_ttl_seconds=99999999999999999999",
    "download_ttl_seconds=-5",
    "delete_status=99",
    "cancel_status=1000",
    "webhook_create_status=500",
    "processing_retry_after=-1",
    "min_upload_bytes=0",
    "max_upload_bytes=99999999999999999999999",
    "max_upload_bytes=1",
    "identify_bytes=0",
    "tus_extension=a\r\nX-Evil: 1",
    "tus_extension=€",
    "locked_code=",
    "failed_error_code=\ud800",
)


@pytest.mark.parametrize("choice", CHOICES, ids=ascii)
def test_choice_is_refused(choice: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=choice.partition("=")[0].replace("max_upload", "(min|max)_upload")):
        Choices.from_text([choice])
    assert main(["--port", "0", "--choice", choice]) == 2
    assert capsys.readouterr().err.startswith("Cannot start: ")


@pytest.mark.parametrize(
    "odd",
    [{"keep_partial": 1}, {"delete_status": "204"}, {"upload_ttl_seconds": None}, {"delete_status": True}],
    ids=str,
)
def test_choice_of_another_type_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(odd))):
        Choices(**odd)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--balance", "99999999999999999999"],
        ["--port", "-1"],
        ["--port", "65535"],
        ["--storage-port", "99999"],
        ["--api-key", "sk_a b"],
        ["--webhook-secret", "whsec_€"],
        ["--host", "not a host"],
    ],
    ids=str,
)
def test_command_line_reports_invalid_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "0", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Cannot start: ")
    assert len(said.splitlines()) == 1


def test_foreign_database_file_prevents_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "roughy.sqlite").write_bytes(b"no database " * 1000)
    assert main(["--port", "0", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("Cannot start: ")
