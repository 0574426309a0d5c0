"""The command `verify` against the emulator, with every option of it, and with faults."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_roughy.api import Request
from airflow_provider_roughy.cli.parser import build_parser
from airflow_provider_roughy.conformance import command
from airflow_provider_roughy.conformance.checks import CHECKS, spec
from airflow_provider_roughy.conformance.cleaning import is_leftover
from airflow_provider_roughy.conformance.facts import FACTS
from airflow_provider_roughy.conformance.run import check, run
from airflow_provider_roughy.conformance.session import MAX_RATE, Session
from airflow_provider_roughy.conformance.workspace import PREFIX, Workspace
from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from airflow_provider_roughy.emulator import __main__ as emulator
from airflow_provider_roughy.settings import Address, Settings

#: A value of each option of the emulator that is not its default, and that `verify` notices.
FLIPS: dict[str, list[Any]] = {
    "archived_project_accepts_assets": [False],
    "asset_event_entity": ["none"],
    "audio_has_video_renders": [True],
    "cancel_status": [200],
    "cancelled_render": ["cancelled", "removed"],
    "cancelled_upload": ["gone"],
    "concurrent_patch": ["locked"],
    "create_sends_tus_headers": [False],
    "delete_status": [200],
    "download_ttl_seconds": [60],
    "failed_error_code": ["unreadable"],
    "finished_upload": ["not_found", "offset"],
    "foreign_cut_status": [422],
    "frame_rate_required_status": [422],
    "keep_partial": [False],
    "locked_code": ["account_locked"],
    "malformed_json_status": [422],
    "max_upload_bytes": [1_000_000],
    "method_override": [True],
    "min_upload_bytes": [100, 20],
    "options_needs_key": [False],
    "options_status": [200],
    "over_length_status": [400, 409],
    "over_limit_size_status": [422],
    "picture_of_audio_output": ["ignored"],
    "processing_retry_after": [7],
    "refund_on_delete": [True],
    "rejected_upload": ["kept", "failed"],
    "render_cancel": ["post"],
    "render_filters": ["ignored"],
    "short_first_chunk_status": [400, 422],
    "tus_extension": ["termination"],
    "unfinished_cut_code": ["cut_not_proposed"],
    "unknown_event_type": ["accepted"],
    "unknown_filter": ["empty"],
    "unsupported_media_code": ["unsupported_media_type"],
    "upload_expires_header": [False],
    "upload_ttl_seconds": [3600.0],
    "webhook_create_status": [200],
    "webhook_http": ["refused"],
    "webhook_list": ["array"],
}
#: Options that make another one visible.
WITH: dict[str, dict[str, Any]] = {"locked_code": {"concurrent_patch": "locked"}}


def connect(roughy: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = roughy.airflow_connection
    fields["extra"] = {**fields["extra"], "webhook_secret": roughy.webhook_secret}
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(fields))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def run_command(*arguments: str) -> int:
    return command.verify(build_parser().parse_args(["verify", *arguments]))


def verify(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    output = tmp_path / "verify.json"
    status = run_command("--yes", "--file", str(output), *arguments)
    return status, json.loads(output.read_text())


def of(found: dict[str, Any], verdict: str) -> list[str]:
    return [each["id"] for each in found["facts"] if each["verdict"] == verdict]


# ---- The table of facts


def test_every_fact_has_a_check_or_a_reason() -> None:
    ids = [each.id for each in FACTS]
    assert [each for each, times in Counter(ids).items() if times > 1] == []
    assert {each.id for each in FACTS if not each.unchecked} == set(CHECKS)
    assert all(each.expected for each in FACTS if not each.unchecked)


def test_every_option_of_the_emulator_is_a_fact() -> None:
    options = {each.name for each in fields(Choices)}
    named = Counter(each.choice for each in FACTS if each.choice)
    assert named == Counter(options)
    unseen = {each.choice for each in FACTS if each.choice and each.unchecked}
    assert set(FLIPS) == options - unseen


# ---- Against the emulator


def test_every_fact_holds_on_the_emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}/hook"
    with Emulator(progression="polls=2", balance=7) as roughy:
        connect(roughy, monkeypatch)
        status, found = verify(tmp_path, "--max-credits", "1", "--public-url", url)
        assert (roughy.balance, roughy.assets, roughy.webhook_endpoints) == (6, [], [])
        projects = [each for each in roughy.requests if each.path == "/v1/projects" and each.method == "POST"]
        assert len(projects) > 3
        assert roughy.api_key not in json.dumps(found)
    printed = capsys.readouterr().out
    assert (status, of(found, "differs"), found["stopped"], found["left_behind"]) == (0, [], None, []), printed
    assert set(of(found, "not testable")) == {
        "credits.gate",
        "patch.locked-code",
        *(each for each in CHECKS if each.startswith("spec.")),
    }
    assert found["choices"].items() <= vars(Choices()).items()
    for secret in ("X-Amz-Signature", "X-Amz-Credential", "@", "sk_", "whsec_", "/v1/uploads/0"):
        assert secret not in json.dumps(found["facts"]) + printed
    assert "102 documented facts" in printed
    assert all(each["request_id"] for each in found["facts"] if each["id"].startswith("projects."))


def test_nothing_is_spent_unless_credits_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(progression="immediate", balance=3) as roughy:
        connect(roughy, monkeypatch)
        status, found = verify(tmp_path)
        assert (status, roughy.balance) == (0, 3)
        assert not any(each.body_bytes >= 16_044 for each in roughy.requests if each.method == "PATCH")
    assert {each["seen"] for each in found["facts"] if each["id"].startswith(("ready.", "finished."))} == {
        "it needs --max-credits 1"
    }


def test_refused_url_of_webhooks_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(progression="polls=2", choices=Choices(webhook_http="refused")) as roughy:
        connect(roughy, monkeypatch)
        url = f"http://127.0.0.1:{free_port()}/"
        status, found = verify(tmp_path, "--max-credits", "1", "--public-url", url)
    assert (status, of(found, "differs"), found["stopped"]) == (1, ["webhooks.loopback"], None)
    assert {each["seen"] for each in found["facts"] if each["id"].startswith("events.")} == {
        "the endpoint could not be created: 422 validation_error"
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param(option, value, id=f"{option}={value}")
        for option in FLIPS
        for value in FLIPS[option]
        # The next test has a receiver.
        if option != "asset_event_entity"
    ],
)
def test_each_option_of_the_emulator_is_noticed(option: str, value: Any) -> None:
    fact = next(each for each in FACTS if each.choice == option)
    choices = Choices(**{**WITH.get(option, {}), option: value})
    with Emulator(progression="polls=2", choices=choices) as roughy:
        session = Session(Settings(roughy.api_key, roughy.url))
        try:
            workspace = Workspace(session, max_credits=1)
            result = check(fact, workspace)
            assert (result.verdict, result.value) == ("differs", value)
            assert result.option == f"--choice {option}={json.dumps(value).strip(chr(34)).removesuffix('.0')}"
            recorded = {"verdict": "differs", "value": value, "seen": result.seen}
            assert check(fact, Workspace(session, max_credits=1), recorded).verdict == "holds"
        finally:
            session.close()


def test_emulator_behaves_as_roughy_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = Choices(
        rejected_upload="failed",
        finished_upload="offset",
        keep_partial=False,
        delete_status=200,
        asset_event_entity="none",
    )
    url = f"http://127.0.0.1:{free_port()}/"
    arguments = ("--max-credits", "1", "--public-url", url)
    with Emulator(progression="polls=2", choices=choices) as roughy:
        connect(roughy, monkeypatch)
        status, found = verify(tmp_path, *arguments)
    assert (status, of(found, "differs")) == (
        1,
        ["projects.delete-status", "patch.broken", "text.asset", "finished.head", "events.entity"],
    )
    record = tmp_path / "service.json"
    (tmp_path / "verify.json").rename(record)
    seen = Choices.from_text([], against=record)
    assert seen == choices
    assert Choices.from_text(["rejected_upload=kept"], against=record).rejected_upload == "kept"
    with Emulator(progression="polls=2", choices=seen) as roughy:
        connect(roughy, monkeypatch)
        status, found = verify(tmp_path, *arguments, "--against", str(record))
    assert (status, of(found, "differs")) == (0, [])


def test_emulator_refuses_a_file_that_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, text in enumerate(("", "[]", '{"choices": {"rejected_upload": "eaten"}}')):
        record = tmp_path / f"{number}.json"
        record.write_text(text)
        assert emulator.main(["--port", "0", "--against", str(record)]) == 2
        assert "Cannot start" in capsys.readouterr().err


# ---- Faults while it runs


@pytest.mark.parametrize(
    "fault",
    [
        Fault(nth=40, times=3, status=429, headers={"Retry-After": "0"}),
        Fault(nth=40, times=2, status=503),
        Fault(nth=40, times=2, drop=True),
        Fault(method="POST", path="/v1/projects", lose_reply=True),
        Fault(method="PATCH", path="/v1/uploads/*", nth=20, times=1, lose_reply=True),
    ],
    ids=["429", "503", "reset", "lost project", "lost chunk"],
)
def test_fault_that_passes_leaves_nothing_behind(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(progression="polls=2") as roughy:
        connect(roughy, monkeypatch)
        roughy.inject(fault)
        status, found = verify(tmp_path, "--max-credits", "1")
        assert of(found, "differs") == []
        unclear = [each["seen"] for each in found["facts"] if each["seen"].startswith("could not say")]
        assert status == (2 if unclear else 0)
        assert (roughy.assets, projects(roughy), found["left_behind"], found["stopped"]) == ([], [], [], None)
        assert roughy.balance in (999, 1000)
        assert found["throttled"] == (3 if fault.status == 429 else 0)


def projects(roughy: Emulator) -> list[str]:
    """Return the names of all projects but the account's first one."""
    found = []
    for state in ("active", "archived"):
        reply = httpx.get(
            f"{roughy.url}/v1/projects",
            params={"state": state, "limit": 100},
            headers={"Authorization": f"Bearer {roughy.api_key}"},
        )
        found += [each["name"] for each in reply.json()["items"] if each["id"] != roughy.project_id]
    return found


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(nth=30, times=None, status=401), "rejected the API key"),
        (Fault(nth=30, times=None, drop=True), "no answer"),
        (Fault(nth=30, times=None, status=429, headers={"Retry-After": "3600"}), "Retry-After of 3600 s"),
    ],
    ids=["key revoked", "resets", "429"],
)
def test_fault_that_stays_ends_in_words_and_the_next_run_cleans_up(
    fault: Fault, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("airflow_provider_roughy.conformance.session._TRIES", 2)
    with Emulator(progression="immediate") as roughy:
        connect(roughy, monkeypatch)
        roughy.inject(fault)
        status, found = verify(tmp_path)
        assert status == 2
        printed = capsys.readouterr().out
        assert words in f"{found['stopped']}{printed}"
        assert "Not removed: project" in printed
        assert len(projects_of(roughy)) == len(found["left_behind"]) > 0
        roughy.clear_faults()
        monkeypatch.setattr("airflow_provider_roughy.conformance.cleaning.LEFT_AFTER", timedelta(0))
        status, found = verify(tmp_path)
        assert (status, projects(roughy), roughy.assets) == (0, [], [])


def projects_of(roughy: Emulator) -> list[str]:
    roughy.clear_faults()
    return projects(roughy)


def test_leftovers_of_a_killed_run_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    old, young = (f"{PREFIX} {now - timedelta(minutes=age):%Y%m%dT%H%M%SZ} 0123abcd" for age in (31, 10))
    assert (is_leftover(old), is_leftover(young)) == (True, False)
    assert not any(map(is_leftover, (None, PREFIX, f"{old} of mine", old.replace("verify", "certify"))))
    with Emulator(progression="immediate") as roughy:
        connect(roughy, monkeypatch)
        session = Session(Settings(roughy.api_key, roughy.url))
        for name in (old, young, "Episode 42"):
            session.send("POST", "/v1/projects", json={"name": name})
            fields = {"url": "https://x.example/", "event_types": ["cut.failed"], "description": name}
            session.send("POST", "/v1/webhook-endpoints", json=fields)
        session.close()
        status, _ = verify(tmp_path)
        assert status == 0
        assert sorted(projects(roughy)) == ["Episode 42", young]
        assert len(roughy.webhook_endpoints) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_removes_everything(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(progression="immediate") as roughy:
        connect(roughy, monkeypatch)
        roughy.inject(Fault(path="/v1/uploads/*", nth=3, times=1, delay=30))
        output = tmp_path / "verify.json"
        arguments = ["--yes", "--max-credits", "1", "--file", str(output)]
        with subprocess.Popen(
            [sys.executable, "-m", "airflow_provider_roughy", "verify", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            wait_for(lambda: [each.path for each in roughy.requests].count("/v1/uploads") > 1 and slow(roughy))
            process.send_signal(number)
            printed = process.communicate(timeout=60)[0]
        assert process.returncode == 2, printed
        assert "Stopped: interrupted" in printed
        assert "Traceback" not in printed
        assert json.loads(output.read_text())["left_behind"] == []
        assert (projects(roughy), roughy.assets, roughy.balance) == ([], [], 1000)


def slow(roughy: Emulator) -> bool:
    """Return whether a request is waiting for its reply."""
    return roughy.requests[-1].status is None and roughy.requests[-1].started_at < time.time() - 0.3


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- The command


def test_nothing_is_sent_without_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Emulator() as roughy:
        connect(roughy, monkeypatch)
        monkeypatch.setattr("builtins.input", lambda prompt: "n")
        assert run_command("--max-credits", "1") == 2
        assert roughy.requests == []
    printed = capsys.readouterr().out
    assert "It spends 1 credit at most" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--conn-id", "nowhere"], "no connection 'nowhere'"),
        (["--rate", "3"], "--rate must be above 0 and at most 2"),
        (["--public-url", "https://tunnel.example/"], "--listen"),
        (["--file", "/no/such/folder/verify.json"], "the folder of --file does not exist"),
        (["--against", "/no/such/file"], "is not a result of `verify`"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Emulator() as roughy:
        connect(roughy, monkeypatch)
        assert run_command("--yes", *arguments) == 2
        assert roughy.requests == []
    assert words in capsys.readouterr().err


def test_other_hosts_get_two_requests_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """In virtual time: a whole run, as if the emulator were another host."""
    paused, sent = 0.0, list[float]()

    def clock() -> float:
        return time.monotonic() + paused

    def sleep(seconds: float) -> None:
        nonlocal paused
        paused += seconds

    with Emulator(progression="seconds=1") as roughy:
        with monkeypatch.context() as patch:
            patch.setattr(Address, "is_loopback", False)
            session = Session(Settings(roughy.api_key, roughy.url), rate=100, sleep=sleep, clock=clock)
        handed_over = session.client.send

        def send(request: Request, **options: Any) -> Any:
            sent.append(clock())
            roughy.advance(0.5)
            return handed_over(request, **options)

        monkeypatch.setattr(session.client, "send", send)
        report = run(session, Workspace(session, max_credits=1))
        session.close()
        assert not session.is_local
        assert [result for result in report.results if result.verdict == "differs"] == []
        assert (report.status, roughy.assets) == (0, []), [*report.lines()]
    gaps = [later - earlier for earlier, later in pairwise(sorted(sent))]
    assert len(sent) > 180
    assert min(gaps) > 1 / MAX_RATE - 0.01
    print(f"{len(sent)} requests in {sent[-1] - sent[0]:.0f} s")


# ---- Another implementation


#: What `tests/node/roughy.mjs` does unlike the documentation, and the facts that this changes.
DIFFERENCES = {
    "limit-clamped": "lists.limit-101",
    "oldest-first": "lists.order",
    "new-state": "spec.states",
    "locked": "patch.concurrent",
    "text-failed": "text.asset",
    "finished-offset": "finished.head",
    "duration-number": "ready.duration",
    "no-etag": "download.validator",
    "cut-repeats": "cuts.same",
    "refund": "ready.refund",
}


@contextmanager
def foreign(node: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *differences: str) -> Iterator[str]:
    """Start the Roughy around the TUS server of other authors; yield its address."""
    arguments = ["node", "roughy.mjs", str(folder / "uploads"), "sk_foreign", *differences]
    with subprocess.Popen(arguments, cwd=node, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port, secret = process.stdout.readline().split()
            fields = {
                "conn_type": "roughy",
                "host": f"http://127.0.0.1:{port}",
                "password": "sk_foreign",
                "extra": {"webhook_secret": secret},
            }
            monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(fields))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def test_every_fact_holds_on_a_roughy_of_other_authors(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with foreign(node, tmp_path, monkeypatch):
        url = f"http://127.0.0.1:{free_port()}/"
        status, found = verify(tmp_path, "--max-credits", "1", "--public-url", url)
    assert (status, of(found, "differs")) == (0, [])
    assert of(found, "not testable") == ["credits.gate", "patch.locked-code"]
    assert found["news"] == {"asset": ["mood"], "paths": ["GET /v1/teams"]}


def test_ten_differences_are_found_and_nothing_else(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with foreign(node, tmp_path, monkeypatch, *DIFFERENCES):
        status, found = verify(tmp_path, "--max-credits", "1")
    assert (status, of(found, "differs")) == (1, list(DIFFERENCES.values()))
    printed = capsys.readouterr().out
    assert "--choice finished_upload=offset" in printed
    assert "What rests on it: A cut whose reply was lost is requested again." in printed


def test_file_that_should_be_free_and_is_charged_ends_the_spending(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with foreign(node, tmp_path, monkeypatch, "charge-failures") as host:
        status, found = verify(tmp_path, "--max-credits", "1")
        headers = {"Authorization": "Bearer sk_foreign"}
        balance = httpx.get(f"{host}/v1/credits/balance", headers=headers).json()["balance"]
    assert balance == 20 - 1
    assert (status, of(found, "differs")) == (1, ["failed.free"])
    reasons = {each["seen"] for each in found["facts"] if each["id"].startswith("ready.")}
    assert reasons == {"the credits that were allowed are spent, by a file that should have cost nothing"}


def test_production_without_a_specification_is_compared_with_that_of_staging(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with foreign(node, tmp_path, monkeypatch, "new-state") as staging, Emulator() as roughy:
        monkeypatch.setattr(spec, "_STAGING", f"{staging}/v1/openapi.json")
        monkeypatch.setattr(spec, "DEFAULT_BASE_URL", roughy.url)
        session = Session(Settings(roughy.api_key, roughy.url))
        workspace = Workspace(session, max_credits=0)
        results = {each.id: check(each, workspace) for each in FACTS if each.id.startswith("spec.")}
        session.close()
    assert [each for each in results if results[each].verdict != "holds"] == ["spec.states"]
    assert results["spec.states"].seen == "+quarantined"


def test_key_is_removed_from_json_however_it_is_escaped() -> None:
    settings = Settings('sk_"a\\b', "https://roughy.example", webhook_secret='whsec_"c')
    text = json.dumps({"seen": 'rejected sk_"a\\b and whsec_"c'})
    assert json.loads(command._without_secrets(text, settings)) == {"seen": "rejected … and …"}
