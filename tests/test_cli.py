"""The command line: what each command prints, asks and changes, and its exit status."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_roughy import compat
from airflow_provider_roughy.cli.definition import get_commands
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.ingest.discover import discover
from airflow_provider_roughy.ledger import ClaimOwner, Ledger, Progress, Result, Version
from tests.commanding import Run
from tests.ingesting import Nights, add

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
KEYS = {"key", "state", "source", "asset_id", "reason", "size_bytes", "credits", "since", "kept_until", "at"}


@pytest.fixture
def ledger(nights: Nights, connection: dict[str, Any]) -> str:
    """The ledger of these nights."""
    return str(nights.options["ledger"])


@pytest.fixture
def a_night(roughy: Emulator, folder: Path, ledger: str) -> None:
    """What a night has left of which a is ready, b and c are not paid for, and a text file is rejected."""
    (folder / "text.mp3").write_text("no recording " * 10)
    stored, owner, now = Ledger(ledger), ClaimOwner("dag.task", "night 0", "try"), datetime.now(UTC).isoformat()
    stored.check()
    for file in discover(str(folder)).files:
        identity, name = file.identity(project_id=roughy.project_id), Path(file.uri).name
        about = (identity.key, file.uri, identity.to_dict())
        if name == "text.mp3":
            reason = "neither audio nor video"
            stored.create_result(Result(*about, str(owner), "rejected", reason=reason, size_bytes=file.size))
        elif name == "a.mp3":
            asset_id = roughy.seed_asset("ready", duration_seconds=3.0)
            stored.create_result(Result(*about, str(owner), "ready", asset_id, size_bytes=file.size, credits=1))
        else:
            asset_id = roughy.seed_asset("pending_payment", duration_seconds=3.0)
            state: dict[str, Any] = {
                "state": Progress.PENDING_PAYMENT,
                "asset_id": asset_id,
                "acknowledged_at": now,
                "since": now,
            }
            stored.create_version(Version(about[0], 1, owner, *about[1:], **state))


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a person at a terminal answer."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def answer(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", Terminal(text))

    return answer


# ---- The ledger


def test_list_shows_what_a_night_has_done_in_every_format(a_night: None, run: Run, ledger: str) -> None:
    rows = run("ledger", "list", "--ledger", ledger, "-o", "json").rows
    assert sorted(row["state"] for row in rows) == ["pending_payment", "pending_payment", "ready", "rejected"]
    assert [set(row) for row in rows] == [KEYS] * 4
    assert [row["at"] for row in rows] == sorted((row["at"] for row in rows), reverse=True)
    (rejected,) = (row for row in rows if row["state"] == "rejected")
    assert "neither audio nor video" in rejected["reason"]
    unpaid = [row for row in rows if row["state"] == "pending_payment"]
    in_30_days = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    assert [row["kept_until"] for row in unpaid] == [in_30_days] * 2
    assert yaml.safe_load(run("ledger", "list", "--ledger", ledger, "-o", "yaml").out) == rows
    plain, table = (run("ledger", "list", "--ledger", ledger, "-o", output).out for output in ("plain", "table"))
    assert all(row["source"] in plain and row["key"] in plain for row in rows), plain
    assert all(f"\n{row['key'][:12]} | {row['state']} " in table for row in rows), table


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--state", "pending_payment"], ["b.mp3", "c.mp3"]),
        (["--state", "rejected", "--state", "ready"], ["a.mp3", "text.mp3"]),
        (["--source", "t*.mp3"], ["text.mp3"]),
        (["--source", "*/incoming/[ab].mp3"], ["a.mp3", "b.mp3"]),
        (["--newer-than", "1h", "--state", "ready"], ["a.mp3"]),
        (["--older-than", "1h"], []),
    ],
    ids=["unpaid", "two states", "name", "path", "newer", "older"],
)
def test_list_filters(a_night: None, run: Run, ledger: str, options: list[str], names: list[str]) -> None:
    rows = run("ledger", "list", "--ledger", ledger, "-o", "json", *options).rows
    assert sorted(Path(row["source"]).name for row in rows) == names


def test_list_says_how_many_it_does_not_show(a_night: None, run: Run, ledger: str) -> None:
    ran = run("ledger", "list", "--ledger", ledger, "--limit", 1)
    assert "3 more are not shown: give --limit 0" in ran.out
    assert len(run("ledger", "list", "--ledger", ledger, "--limit", 1, "-o", "json").rows) == 1


def test_show_says_what_happens_next_by_every_name(a_night: None, run: Run, ledger: str, folder: Path) -> None:
    (row,) = run("ledger", "show", "text.mp3", "--ledger", ledger, "-o", "json").rows
    assert (
        row["next"] == "the next run leaves it out, as it is rejected; `ledger retry` has the next run ingest it again"
    )
    assert row["run"] == "dag.task, run night 0"
    for name in (row["key"], row["key"][:8], folder / "text.mp3", f"file://{folder}/text.mp3"):
        assert run("ledger", "show", name, "--ledger", ledger, "-o", "json").rows == [row]
    (unpaid,) = run("ledger", "show", "b.mp3", "--ledger", ledger, "-o", "json").rows
    assert unpaid["next"].startswith("top up at Roughy by 20")
    assert "next run leaves it out" in run("ledger", "show", "a.mp3", "--ledger", ledger).out


@pytest.mark.parametrize("command", ["show", "retry", "forget"])
def test_a_name_that_is_nothing_is_an_error(a_night: None, run: Run, ledger: str, command: str) -> None:
    before = run("ledger", "export", "--ledger", ledger).out
    ran = run("ledger", command, "a.mp3", "nothing.mp3", "--ledger", ledger, *(["--yes"] if command != "show" else []))
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == f"Error: Ledger {ledger} has no recording nothing.mp3: `ledger list` shows those that it has\n"
    assert run("ledger", "export", "--ledger", ledger).out == before


def test_a_folder_that_is_no_ledger_is_an_error(run: Run, tmp_path: Path) -> None:
    ran = run("ledger", "list", "--ledger", tmp_path / "nowhere")
    assert (ran.status, ran.err) == (
        1,
        f"Error: There is no ledger at {tmp_path}/nowhere: check --ledger and --ledger-conn-id\n",
    )
    assert not (tmp_path / "nowhere").exists()


def test_retry_has_the_next_run_ingest_a_recording_again(
    a_night: None, run: Run, ledger: str, nights: Nights, roughy: Emulator
) -> None:
    ran = run("ledger", "retry", "a.mp3", "--ledger", ledger, "--yes")
    assert ran.status == 0
    assert "ingests it again; its state was ready" in ran.out
    nights.run(on_pending_payment="return")
    assert (len(nights.xcoms["ready"]), len(nights.xcoms["pending_payment"])) == (1, 2)
    assert nights.xcoms["already_ingested"] == {"rejected": 1}
    assert len(roughy.assets) == 4


def test_retry_of_a_replaced_file_costs_nothing(
    a_night: None, run: Run, ledger: str, nights: Nights, roughy: Emulator, folder: Path
) -> None:
    (folder / "text.mp3").write_bytes((folder / "a.mp3").read_bytes() + b"another")
    nights.run(on_pending_payment="return")
    assert len(nights.xcoms["ready"]) == 1
    ran = run("ledger", "retry", "text.mp3", "--ledger", ledger, "--yes")
    assert (ran.status, ran.out.count("Left as it is"), ran.out.count("its state was rejected")) == (0, 1, 1)
    roughy.clear_requests()
    nights.run(on_pending_payment="return")
    assert {request.method for request in roughy.requests} <= {"GET"}
    # By its key, it is meant.
    [key] = [
        row["key"] for row in run("ledger", "list", "--ledger", ledger, "-o", "json").rows if "text" in row["source"]
    ]
    assert "its state was ready" in run("ledger", "retry", key, "--ledger", ledger, "--yes").out


def test_retry_leaves_an_unpaid_recording_as_it_is(a_night: None, run: Run, ledger: str) -> None:
    ran = run("ledger", "retry", "b.mp3", "--ledger", ledger, "--yes")
    assert ran.status == 1
    assert "Left as it is:" in ran.out
    assert "top up at Roughy by 20" in ran.out
    assert len(run("ledger", "list", "--ledger", ledger, "-o", "json").rows) == 4


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("", 1)], ids=["yes", "no", "end"])
def test_a_person_is_asked_before_something_is_forgotten(
    a_night: None, run: Run, ledger: str, answered: Any, answer: str, status: int
) -> None:
    answered(answer)
    ran = run("ledger", "forget", "a.mp3", "--ledger", ledger)
    assert ran.status == status
    assert "a.mp3 (ready)? Roughy charges 1 recording when ingested again: 1 credit. (y/n)" in ran.err
    left = {Path(row["source"]).name for row in run("ledger", "list", "--ledger", ledger, "-o", "json").rows}
    assert ("a.mp3" in left) == (status == 1)


def test_without_a_terminal_and_without_yes_nothing_is_forgotten(a_night: None, run: Run, ledger: str) -> None:
    ran = run("ledger", "forget", "a.mp3", "--ledger", ledger)
    assert ran.status == 1
    assert "There is no terminal to ask on: give --yes. Nothing was changed" in ran.err
    assert len(run("ledger", "list", "--ledger", ledger, "-o", "json").rows) == 4


def test_forget_refuses_what_an_active_run_holds(a_night: None, run: Run, ledger: str) -> None:
    stored = Ledger(ledger)
    (key,) = (entry.key for entry in stored.entries() if entry.source.endswith("b.mp3"))
    version = stored.find_latest(key)
    assert version is not None
    with stored.lease(version.owner):
        ran = run("ledger", "forget", "b.mp3", "--ledger", ledger, "--yes")
        assert ran.status == 1
        assert "dag.task, run night 0 holds the claim on it" in ran.err
        assert stored.find_latest(key) == version
        assert run("ledger", "forget", "b.mp3", "--ledger", ledger, "--yes", "--force").status == 0
    assert stored.find_latest(key) is None


def test_recheck_compares_the_ledger_with_roughy(a_night: None, run: Run, ledger: str, roughy: Emulator) -> None:
    roughy.top_up(10)
    rows = run("ledger", "recheck", "--ledger", ledger, "-o", "json").rows
    assert [(row["state"], row["at_roughy"], row["next"]) for row in rows] == [
        ("pending_payment", "ready", "the next run reports it")
    ] * 2


def test_recheck_has_recordings_ingested_again_whose_asset_is_gone(a_night: None, run: Run, ledger: str) -> None:
    (asset_id,) = (row["id"] for row in run("assets", "list", "--state", "ready", "-o", "json").rows)
    assert run("assets", "delete", asset_id, "--yes").status == 0
    ran = run("ledger", "recheck", "--ledger", ledger, "--all", "--forget-gone", "--yes", "-o", "json")
    (gone,) = (row for row in ran.rows if row["at_roughy"] == "gone")
    assert (gone["asset_id"], ran.status) == (asset_id, 0)
    assert "Forgot 1 recording" in ran.err
    assert len(run("ledger", "list", "--ledger", ledger, "-o", "json").rows) == 3


def test_export_writes_each_entry_on_a_line(a_night: None, run: Run, ledger: str, tmp_path: Path) -> None:
    lines = run("ledger", "export", "--ledger", ledger).out.splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == 4
    assert {entry["identity"]["uri"] for entry in entries} == {entry["source"] for entry in entries}
    file = tmp_path / "ledger.jsonl"
    assert run("ledger", "export", "--ledger", ledger, "--file", file).out == f"Wrote 4 lines to {file}\n"
    assert file.read_text().splitlines() == lines
    again = run("ledger", "export", "--ledger", ledger, "--file", file)
    assert (again.status, "File exists" in again.err) == (1, True)


def test_a_damaged_entry_is_reported_and_the_others_are_listed(a_night: None, run: Run, ledger: str) -> None:
    (key,) = (entry.key for entry in Ledger(ledger).entries() if entry.state == "ready")
    Path(ledger, f"{key}.json").write_bytes(b"{")
    ran = run("ledger", "list", "--ledger", ledger, "-o", "json")
    assert (ran.status, len(ran.rows)) == (1, 3)
    assert f"{key}.json of ledger {ledger} cannot be read" in ran.err


def test_names_with_control_characters_and_markup_are_printed_harmlessly(
    roughy: Emulator, nights: Nights, folder: Path, recordings: dict[str, Path], run: Run, ledger: str, log: Any
) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    odd = "a\n\x1b[31mb\x07\u202e[bold]c:smile:.mp3"
    add(folder, odd, recordings["audio"])
    nights.run()
    shown = "a\\n\\x1b[31mb\\x07\\u202e[bold]c:smile:.mp3"
    text = log()
    assert shown in text
    assert odd not in text
    assert [line for line in text.splitlines() if line.startswith("\x1b[31mb")] == []
    for output in ("table", "plain"):
        out = run("ledger", "list", "--ledger", ledger, "-o", output).out
        if output == "table":
            # The path is long, so that its column wraps.
            cells = [line.split(" | ") for line in out.splitlines()[2:]]
            assert "".join(row[2].strip() for row in cells if len(row) > 2).endswith(f"/{shown}")
        else:
            assert shown in out
        assert not {"\x1b", "\x07", "\u202e"} & set(out)
    (row,) = run("ledger", "list", "--ledger", ledger, "-o", "json").rows
    assert run("ledger", "show", row["source"], "--ledger", ledger).status == 0
    assert run("ledger", "show", folder / odd, "--ledger", ledger, "-o", "json").rows[0]["key"] == row["key"]


# ---- Plans, credits, assets, projects


def test_plan_prices_what_a_run_would_upload_and_creates_nothing(
    a_night: None, run: Run, ledger: str, folder: Path, recordings: dict[str, Path], roughy: Emulator
) -> None:
    pytest.importorskip("av")
    add(folder, "new.mp3", recordings["audio"])
    (folder / "tiny.mp3").write_text("x")
    files = sorted(path.name for path in Path(ledger).rglob("*"))
    roughy.top_up(5)
    roughy.clear_requests()
    ran = run("plan", folder, "--ledger", ledger, "-o", "json")
    assert {Path(row["source"]).name: (row["action"], row["credits"]) for row in ran.rows} == {
        "new.mp3": ("upload", 1),
        "tiny.mp3": ("rejected", None),
    }
    assert "upload 1 recording for 1 credit; the balance is" in ran.err
    assert "4 are already ingested (2 pending_payment, 1 ready, 1 rejected)" in ran.err
    assert {request.method for request in roughy.requests} == {"GET"}
    assert sorted(path.name for path in Path(ledger).rglob("*")) == files
    deferred = run("plan", folder, "--ledger", ledger, "--max-credits", 0).out
    assert "deferred" in deferred
    assert "upload 0 recordings" in deferred
    assert run("plan", folder, "--ledger", f"{ledger}-typo").status == 1


def test_credits_are_summed_up(nights: Nights, run: Run, roughy: Emulator) -> None:
    nights.run()
    asset_id = roughy.assets[0]["id"]
    assert run("balance", "-o", "json").rows == [{"balance": 997}]
    (today, yesterday) = run("credits", "--days", 2, "-o", "json").rows
    assert (today["spent"], today["added"], today["assets"], today["balance"]) == (3, 1000, 3, 997)
    assert (yesterday["spent"], yesterday["added"], yesterday["balance"]) == (0, 0, 0)
    by_project = {row["project"]: row["spent"] for row in run("credits", "--by", "project", "-o", "json").rows}
    assert by_project[f"{roughy.project_id} Emulator"] == 3
    assert run("credits", "--by", "type", "-o", "json").rows[0]["type"]
    assert run("assets", "delete", asset_id, "--yes").status == 0
    by_project = {row["project"]: row["spent"] for row in run("credits", "--by", "project", "-o", "json").rows}
    assert by_project["(assets that were deleted)"] == 1


def test_assets_and_projects_are_listed_shown_and_deleted(run: Run, roughy: Emulator) -> None:
    ids = [roughy.seed_asset("ready", duration_seconds=60.0) for _ in range(2)]
    failed = roughy.seed_asset("failed")
    assert [row["id"] for row in run("assets", "list", "-o", "json").rows] == [failed, *ids[::-1]]
    assert [row["id"] for row in run("assets", "list", "--state", "failed", "-o", "json").rows] == [failed]
    assert "More are not shown" in run("assets", "list", "--limit", 1).out
    shown = run("assets", "show", ids[0], "-o", "json")
    assert shown.rows[0]["state"] == "ready"
    # A signed link is a secret.
    assert "download_url" not in shown.out
    assert "http" not in shown.out
    refused = run("assets", "delete", ids[0], NOBODY, "--yes")
    assert (refused.status, refused.out) == (1, "")
    assert "404 not_found" in refused.err
    assert len(roughy.assets) == 3
    assert run("assets", "delete", *ids, "--yes").status == 0
    assert [asset["id"] for asset in roughy.assets] == [failed]
    assert [row["id"] for row in run("projects", "list", "-o", "json").rows] == [roughy.project_id]
    assert run("projects", "list", "--state", "archived").out == "No data found\n"


def test_webhook_endpoints_are_created_listed_and_deleted(run: Run, roughy: Emulator) -> None:
    made = run("webhooks", "create", "https://airflow.example.org/roughy/webhooks", "-o", "json")
    (endpoint,) = made.rows
    assert endpoint["event_types"] == ["asset.ready", "asset.failed", "asset.pending_payment"]
    assert "webhook_secret" in made.err
    assert "whsec_" not in made.out.replace("whsec_…", "")
    assert [row["id"] for row in run("webhooks", "list", "-o", "json").rows] == [endpoint["id"]]
    missing = run("webhooks", "delete", endpoint["id"], "nothing", "--yes")
    assert (missing.status, missing.err) == (
        1,
        "Error: The account has no webhook endpoint nothing. Nothing was deleted\n",
    )
    assert run("webhooks", "delete", endpoint["id"], "--yes").status == 0
    assert run("webhooks", "list", "-o", "json").rows == []


def test_a_connection_that_airflow_stores_is_found(
    run: Run, roughy: Emulator, airflow_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow 3 reads it outside of a task only for a process that says that it is a server."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    fields = roughy.airflow_connection
    stored = Connection("stored", "roughy", host=fields["host"], password=fields["password"])
    with create_session() as session:
        session.add(stored)
    assert run("balance", "--conn-id", "stored", "-o", "json").rows == [{"balance": 1000}]
    assert "_AIRFLOW_PROCESS_CONTEXT" not in os.environ


# ---- Errors


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"password": "sk_wrong"}, "401 unauthenticated"), ({"conn_type": "postgres"}, "its type is 'postgres'")],
    ids=["key", "type"],
)
def test_an_error_is_one_line_without_the_key(
    run: Run, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], words: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps({**connection, **fields}))
    ran = run("balance")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("Error: ")
    assert ran.err.count("\n") == 1
    assert words in ran.err
    assert "sk_" not in ran.err.replace("sk_…", "")


@pytest.mark.parametrize(
    "argv",
    [
        ["ledger", "list"],
        ["ledger", "list", "--ledger", "/x", "--newer-than", "yesterday"],
        ["credits", "--days", "-1"],
        ["nothing"],
        [],
    ],
    ids=["no ledger", "age", "days", "command", "none"],
)
def test_wrong_arguments_end_with_status_2(run: Run, argv: list[str]) -> None:
    assert run(*argv).status == 2


def test_an_unknown_state_is_an_error_that_names_the_states(a_night: None, run: Run, ledger: str) -> None:
    ran = run("ledger", "list", "--ledger", ledger, "--state", "unpaid")
    assert ran.status == 1
    assert "--state unpaid is not a state: give one of claimed, uploading, sent, pending_payment, failed" in ran.err


# ---- As processes


@pytest.fixture
def process(connection: dict[str, Any], tmp_path: Path) -> Any:
    """Runs a command line as a process, with another home of Airflow than this one."""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "PYTEST", "COV_"))},
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW_CONN_ROUGHY_DEFAULT": json.dumps(connection),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    def command(*argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, argv)], env=env, capture_output=True, text=True, timeout=120, **options
        )

    return command


@pytest.mark.once
def test_a_process_prints_json_that_another_program_reads(
    nights: Nights, process: Any, ledger: str, roughy: Emulator
) -> None:
    nights.run()
    ran = process("airflow_provider_roughy", "ledger", "list", "--ledger", ledger, "-o", "json")
    assert (ran.returncode, len(json.loads(ran.stdout))) == (0, 3), ran.stderr
    refused = process(
        "airflow_provider_roughy", "ledger", "forget", "a.mp3", "--ledger", ledger, stdin=subprocess.DEVNULL
    )
    assert refused.returncode == 1
    assert refused.stderr.rstrip().endswith("give --yes. Nothing was changed")


@pytest.mark.skipif(compat._LINE < (3, 2), reason="Airflow before 3.2 reads no commands from providers")
def test_airflow_has_the_same_commands(process: Any, roughy: Emulator) -> None:
    ran = process("airflow", "roughy", "balance", "--output", "json")
    assert (ran.returncode, json.loads(ran.stdout)) == (0, [{"balance": 1000}]), ran.stderr
    shown = process("airflow", "roughy", "--help").stdout
    (group,) = get_commands()
    assert all(f"    {command.name} " in shown for command in group.subcommands)
    assert group.help in shown
