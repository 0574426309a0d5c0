"""Messages for new users: each has what failed, on which resource, and what to do next."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy import hooks
from airflow_provider_roughy.asset_events.baseline import Baseline
from airflow_provider_roughy.compat import attach
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAuthenticationError,
    RoughyClaimedError,
    RoughyConfigurationError,
    RoughyIngestError,
    RoughyIngestFailedError,
    RoughyLedgerError,
    RoughyNotFoundError,
    RoughyTimeoutError,
    RoughyUnsupportedMediaError,
    RoughyUnusableLedgerError,
    RoughyUnusableSourceError,
    RoughyWebhookError,
)
from airflow_provider_roughy.get_provider_info import CONN_FIELDS
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ingest.discover import find_file
from airflow_provider_roughy.ledger import ClaimOwner, Ledger, Result, Version
from airflow_provider_roughy.lifecycle import ASSET
from airflow_provider_roughy.operators import (
    RoughyCreateUploadOperator,
    RoughyDownloadOperator,
    RoughyIngestOperator,
)
from airflow_provider_roughy.polling import ResourcePoller
from airflow_provider_roughy.sensors import RoughyAssetSensor
from airflow_provider_roughy.transfer.source import find_source
from airflow_provider_roughy.webhooks import messages
from harness import media
from tests.running import Ended, TaskInstance, run_task

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"


def upload(source: Any, **options: Any) -> Ended:
    return run_task(RoughyCreateUploadOperator(task_id="upload", source=source, **options))


def ingesting(source: Any, ledger: Path | str, **options: Any) -> RoughyIngestOperator:
    options = {"poll_interval": 0.2, "timeout": 60, **options}
    return RoughyIngestOperator(task_id="ingest", source=source, ledger=str(ledger), **options)


def ingest(source: Any, ledger: Path | str, **options: Any) -> Ended:
    return run_task(ingesting(source, ledger, **options))


def failed(ended: Ended, cls: type[Exception]) -> str:
    """Return the message of a task that failed without a retry."""
    assert (ended.state, type(ended.error)) == ("failed", cls)
    return str(ended.error)


@pytest.fixture
def connect(connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change fields of Airflow's connection ``roughy_default``."""
    # As in a new process: what was warned of in an earlier test is warned of again.
    monkeypatch.setattr(hooks, "_warned", set())

    def change(**fields: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps({**connection, **fields}))

    return change


# ---- Storages


@pytest.mark.parametrize(
    ("location", "package", "module"),
    [
        ("s3://bucket/talk.mp3", "apache-airflow-providers-amazon[s3fs]", "s3fs"),
        ("s3a://bucket/talk.mp3", "apache-airflow-providers-amazon[s3fs]", "s3fs"),
        ("gs://bucket/talk.mp3", "apache-airflow-providers-google", "gcsfs"),
        ("abfs://container/talk.mp3", "apache-airflow-providers-microsoft-azure", "adlfs"),
        ("sftp://host/talk.mp3", "apache-airflow-providers-sftp[sshfs]", "sshfs"),
    ],
)
def test_storage_without_its_provider_names_the_package_to_install(
    connection: dict[str, Any],
    tmp_path: Path,
    recordings: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    location: str,
    package: str,
    module: str,
) -> None:
    if find_spec(module) is not None:
        pytest.skip(f"{package} is installed")
    # Other tests of this process have attached file systems of their own.
    monkeypatch.setattr(sys.modules[attach.__module__], "_STORE_CACHE", {})
    command = f"`pip install {package}`"
    assert command in failed(upload(location), RoughyUnusableSourceError)
    assert command in failed(ingest(location, tmp_path / "ledger"), RoughyUnusableSourceError)
    assert command in failed(ingest(str(recordings["audio"]), location), RoughyUnusableLedgerError)


def test_storage_that_airflow_does_not_know_is_named(connection: dict[str, Any]) -> None:
    message = failed(upload("nosuch://bucket/talk.mp3"), RoughyUnusableSourceError)
    assert "cannot open nosuch:// locations" in message
    assert "pip install" not in message


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_web_address_as_source_says_to_copy_the_file(connection: dict[str, Any], tmp_path: Path, scheme: str) -> None:
    location = f"{scheme}://example.org/talk.mp3"
    for ended in (upload(location), ingest(location, tmp_path / "ledger")):
        message = failed(ended, RoughyUnusableSourceError)
        assert f"cannot open {scheme}:// URLs" in message
        assert "has to be copied" in message


# ---- The source


@pytest.mark.parametrize("source", ["", "  ", "None", None, "[]"])
def test_empty_source_says_that_a_template_rendered_it(
    connection: dict[str, Any], tmp_path: Path, source: str | None
) -> None:
    for ended in (upload(source), ingest(source, tmp_path / "ledger")):
        message = failed(ended, RoughyUnusableSourceError)
        assert message.startswith("`source` is")
        assert "template" in message


def test_rejected_file_is_named_within_seconds_and_without_a_warning(
    connection: dict[str, Any], tmp_path: Path, log: Callable[[], str]
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("These are notes, and no recording. " * 100)
    started = time.monotonic()
    message = failed(upload(text), RoughyUnsupportedMediaError)
    assert message.endswith(f"{text} is neither audio nor video that Roughy can read")
    # Three pauses of at most a second, on a machine that may be busy.
    assert time.monotonic() - started < 7
    logged = log()
    assert "Roughy rejected the first bytes" in logged
    assert "no progress" not in logged
    assert "Asset not found" not in logged


def test_replica_that_lags_has_a_second_and_a_half_before_a_file_counts_as_rejected(
    roughy: Emulator, connection: dict[str, Any], tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("These are notes, and no recording. " * 100)
    failed(upload(text), RoughyUnsupportedMediaError)
    missing = [
        each.started_at for each in roughy.requests if each.path.startswith("/v1/assets/") and each.status == 404
    ]
    assert missing[2] - missing[0] >= 1.5


def test_empty_batch_names_the_files_that_the_pattern_skips(
    connection: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    ended = ingest(str(folder), tmp_path / "ledger", pattern="*.wav", on_empty="fail")
    message = failed(ended, RoughyUnusableSourceError)
    assert message.endswith("`pattern` does not match 3 files: a.mp3, b.mp3, c.mp3")


# ---- The project


@pytest.mark.parametrize("in_extra", [False, True])
def test_missing_project_is_named_with_its_connection(
    connection: dict[str, Any],
    connect: Callable[..., None],
    recordings: dict[str, Path],
    tmp_path: Path,
    in_extra: bool,
) -> None:
    options = {} if in_extra else {"project_id": NOBODY}
    if in_extra:
        connect(extra={**connection["extra"], "project_id": NOBODY})
    source = str(recordings["audio"])
    for ended in (upload(source, **options), ingest(source, tmp_path / "ledger", **options)):
        message = failed(ended, RoughyNotFoundError)
        assert f"The account of Airflow connection 'roughy_default' has no project {NOBODY}" in message
        assert "Project not found" in message
        assert "`project_id`" in message


def test_missing_project_of_a_list_is_named(hook: RoughyHook) -> None:
    with pytest.raises(RoughyNotFoundError, match=f"'roughy_default' has no project {NOBODY}"):
        list(hook.list_assets(NOBODY))


def test_missing_asset_says_nothing_of_projects(hook: RoughyHook) -> None:
    with pytest.raises(RoughyNotFoundError) as missing:
        hook.get_asset(NOBODY)
    assert "has no project" not in str(missing.value)


def test_no_project_asks_about_a_misspelled_field(
    roughy: Emulator, connect: Callable[..., None], recordings: dict[str, Path], log: Callable[[], str]
) -> None:
    connect(extra={"projectid": roughy.project_id})
    message = failed(upload(str(recordings["audio"])), RoughyConfigurationError)
    assert "the extra of connection 'roughy_default'" in message
    assert "`projectid`: did you mean `project_id`?" in message
    assert "Ignored in the extra of connection 'roughy_default': `projectid`" in log()


def test_project_that_is_no_id_names_the_connection(connect: Callable[..., None], recordings: dict[str, Path]) -> None:
    connect(extra={"project_id": "my project"})
    message = failed(upload(str(recordings["audio"])), RoughyConfigurationError)
    assert message == "The extra of connection 'roughy_default': project_id must be a UUID, not 'my project'"


# ---- The connection


@pytest.mark.parametrize("conn_type", ["postgres", "aws"])
def test_connection_of_another_type_is_refused(connect: Callable[..., None], conn_type: str) -> None:
    connect(conn_type=conn_type)
    works, message = RoughyHook().test_connection()
    assert not works
    assert f"Connection 'roughy_default' is unusable: its type is '{conn_type}', not 'roughy'" in message
    assert "`roughy_conn_id`" in message


@pytest.mark.parametrize("conn_type", ["roughy", "generic", "http", "https", "HTTP", ""])
def test_connection_of_a_general_type_is_accepted(connect: Callable[..., None], conn_type: str) -> None:
    connect(conn_type=conn_type)
    assert RoughyHook().test_connection()[0]


def test_test_connection_fails_if_the_project_is_missing(
    connection: dict[str, Any], connect: Callable[..., None]
) -> None:
    connect(extra={**connection["extra"], "project_id": NOBODY})
    works, message = RoughyHook().test_connection()
    assert not works
    assert f"'roughy_default' has no project {NOBODY}" in message


def test_test_connection_says_that_no_project_is_set(roughy: Emulator, connect: Callable[..., None]) -> None:
    connect(extra={"project": roughy.project_id, "note": "of the studio"})
    works, message = RoughyHook().test_connection()
    assert works
    assert "no `project_id` in the extra" in message
    assert message.endswith("ignored in the extra: `project` (did you mean `project_id`?), `note`")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("projectid", "project_id"),
        ("Project-ID", "project_id"),
        ("extra__roughy__project_id", "project_id"),
        ("verify_ssl", "verify"),
        ("time_out", "timeout"),
        ("allowhttp", "allow_http"),
        ("webhooksecret", "webhook_secret"),
        ("note", None),
        ("region_name", None),
    ],
)
def test_misspelled_field_of_the_extra_is_recognized(
    connection: dict[str, Any], connect: Callable[..., None], name: str, meant: str | None
) -> None:
    connect(extra={**connection["extra"], name: "x"})
    assert RoughyHook().settings.ignored == {name: meant}


def test_name_of_an_ignored_field_is_printable(connection: dict[str, Any], connect: Callable[..., None]) -> None:
    connect(extra={**connection["extra"], "a\nb\x1b[31m": "x"})
    message = RoughyHook().test_connection()[1]
    assert message.endswith(r"ignored in the extra: `a\nb\x1b[31m`")


@pytest.mark.parametrize("field", ["timeout", "verify", "allow_http"])
def test_secret_in_the_wrong_field_is_not_quoted(
    connection: dict[str, Any], connect: Callable[..., None], field: str
) -> None:
    connect(extra={**connection["extra"], field: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
    works, message = RoughyHook().test_connection()
    assert not works
    assert field in message
    assert "MfKQ9" not in message


@pytest.mark.parametrize("deferrable", [False, True])
def test_rejected_key_names_the_connection(connect: Callable[..., None], deferrable: bool) -> None:
    connect(password="sk_wrong")
    sensor = RoughyAssetSensor(task_id="wait", asset_id=NOBODY, deferrable=deferrable, poke_interval=0.1)
    message = failed(run_task(sensor), RoughyAuthenticationError)
    assert message.endswith("Check the API key, which is the password of the Airflow connection 'roughy_default'")


def test_rejected_key_names_the_connection_after_a_deferred_wait(
    hook: RoughyHook, connect: Callable[..., None]
) -> None:
    asset = hook.create_asset(None, 1000)
    sensor = RoughyAssetSensor(task_id="wait", asset_id=asset.id, deferrable=True, poke_interval=0.1)
    ended = run_task(sensor, before_resuming=lambda: connect(password="sk_wrong"))
    assert ended.waited == "triggerer"
    assert failed(ended, RoughyAuthenticationError).endswith("of the Airflow connection 'roughy_default'")


def test_connection_form_says_what_turning_off_verification_does() -> None:
    assert "checks no certificate" in CONN_FIELDS["verify"]["description"]


# ---- The ledger


def test_ledger_that_is_a_file_is_refused(
    connection: dict[str, Any], recordings: dict[str, Path], tmp_path: Path, log: Callable[[], str]
) -> None:
    ledger = tmp_path / "ledger"
    ledger.write_text("Notes.")
    message = failed(ingest(str(recordings["audio"]), ledger), RoughyUnusableLedgerError)
    assert message.startswith(f"Ledger {ledger} cannot be used: it is a file, not a folder")
    assert "`ledger`" in message
    # Nothing was looked at: a line about results would mislead.
    assert "no recordings" not in log()


def test_ledger_in_a_file_is_refused(connection: dict[str, Any], recordings: dict[str, Path], tmp_path: Path) -> None:
    parent = tmp_path / "notes.txt"
    parent.write_text("Notes.")
    message = failed(ingest(str(recordings["audio"]), parent / "ledger"), RoughyUnusableLedgerError)
    assert f"{parent}, which should contain the ledger, is a file" in message


# ---- Arguments


def test_download_of_two_resources_says_that_it_takes_one() -> None:
    with pytest.raises(ValueError, match="not both"):
        RoughyDownloadOperator(task_id="download", target="/tmp/x", asset_id=NOBODY, render_id=NOBODY)
    with pytest.raises(ValueError, match="neither is given"):
        RoughyDownloadOperator(task_id="download", target="/tmp/x")


def test_download_of_ids_that_rendered_to_nothing_says_so(connection: dict[str, Any], tmp_path: Path) -> None:
    task = RoughyDownloadOperator(task_id="download", target=str(tmp_path / "x"), asset_id="")
    assert re.search("both are empty.*template", failed(run_task(task), RoughyConfigurationError))


def test_hook_download_of_two_resources_says_that_it_takes_one(hook: RoughyHook, tmp_path: Path) -> None:
    with pytest.raises(RoughyConfigurationError, match="not both"):
        hook.download(tmp_path / "x", asset_id=NOBODY, render_id=NOBODY)


# ---- What to do about a recording


def forget_by(message: str) -> bool:
    """Run the call that a message prints to forget a recording, and return what it returns."""
    printed = re.search(r"from airflow_provider_roughy\.ledger import Ledger; (Ledger\(.*\)\.forget\('\w+'\))", message)
    assert printed is not None, message
    return bool(eval(printed[1], {"Ledger": Ledger}))


def test_batch_prints_the_call_that_forgets_a_rejected_file(connection: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "in" / "text.mp3"
    text.parent.mkdir()
    text.write_text("These are notes, and no recording. " * 100)
    ledger = tmp_path / "the ledger's"
    message = failed(ingest(text.parent, ledger), RoughyIngestFailedError)
    key = next(iter(Ledger(ledger).entries())).key
    assert f"(key {key})" in message
    context = {"ti": TaskInstance(run_id="the next night")}
    assert run_task(ingesting(text.parent, ledger), context=context).state == "success", "it is counted and skipped"
    assert forget_by(message)
    assert "1 rejected" in failed(ingest(text.parent, ledger), RoughyIngestFailedError)


def test_batch_prints_the_call_that_forgets_a_failed_asset(
    connection: dict[str, Any], tmp_path: Path, recordings: dict[str, Path]
) -> None:
    noise = tmp_path / "noise.mp3"
    shutil.copyfile(recordings["audio"], noise)
    media.corrupt(noise, keep=2000)
    message = failed(ingest(noise, tmp_path / "ledger"), RoughyIngestFailedError)
    assert "1 failed" in message
    assert forget_by(message)
    assert Ledger(tmp_path / "ledger").snapshot().done == set()


def test_log_has_the_call_if_the_task_does_not_fail(
    connection: dict[str, Any], tmp_path: Path, log: Callable[[], str]
) -> None:
    text = tmp_path / "in" / "text.mp3"
    text.parent.mkdir()
    text.write_text("These are notes, and no recording. " * 100)
    assert ingest(text.parent, tmp_path / "ledger", on_failed="return").state == "success"
    assert forget_by(log())


def test_file_that_the_ledger_does_not_have_is_not_to_be_forgotten(connection: dict[str, Any], tmp_path: Path) -> None:
    message = failed(ingest([str(tmp_path / "missing.mp3")], tmp_path / "ledger"), RoughyIngestFailedError)
    assert "forget" not in message


@pytest.mark.parametrize("is_legacy", [False, True])
def test_upload_prints_the_call_that_forgets_a_rejected_file(
    connection: dict[str, Any], tmp_path: Path, recordings: dict[str, Path], is_legacy: bool
) -> None:
    ledger, source = Ledger(tmp_path / "ledger"), recordings["audio"]
    ledger.check()
    if is_legacy:
        content = {
            "source": str(source),
            "wanted": {
                "uri": str(source),
                **find_source(source).fingerprint,
                "project_id": connection["extra"]["project_id"],
                "language": None,
            },
            "owner": "dag.task, run r",
            "state": "refused",
            "reason": "no recording",
        }
        (tmp_path / "ledger" / f"{'b' * 32}.json").write_text(json.dumps(content))
    else:
        identity = find_file(source).identity(project_id=connection["extra"]["project_id"])
        owner = "dag.task, run r"
        result = Result(identity.key, str(source), identity.to_dict(), owner, "rejected", reason="no recording")
        assert ledger.create_result(result)
    message = failed(upload(source, ledger=str(tmp_path / "ledger")), RoughyUnusableSourceError)
    assert f"Source {source} was rejected by dag.task, run r: no recording." in message
    assert forget_by(message)
    assert upload(source, ledger=str(tmp_path / "ledger")).state == "success"


@pytest.mark.parametrize(
    ("location", "conn_id", "call"),
    [
        ("/data/ledger/", None, "Ledger('/data/ledger').forget('k')"),
        ("s3://bucket/ledger", "aws", "Ledger('s3://bucket/ledger', conn_id='aws').forget('k')"),
        ("s3://aws@bucket/ledger", None, "Ledger('s3://bucket/ledger', conn_id='aws').forget('k')"),
        ("s3://key:secret@bucket/ledger", None, "Ledger('s3://bucket/ledger').forget('k')"),
    ],
)
def test_call_that_forgets_names_the_connection_and_no_password(location: str, conn_id: str | None, call: str) -> None:
    assert Ledger(location, conn_id=conn_id).forget_call("k") == call


def test_batch_says_why_an_asset_could_not_be_checked(
    roughy: Emulator, connection: dict[str, Any], tmp_path: Path, recordings: dict[str, Path]
) -> None:
    roughy.progression = "manual"
    assert "1 interrupted" in failed(
        ingest(recordings["audio"], tmp_path / "ledger", timeout=0.5), RoughyIngestFailedError
    )
    (asset,) = roughy.assets
    roughy.inject(Fault(method="GET", path=f"/v1/assets/{asset['id']}", status=503, times=None))
    ended = ingest(recordings["audio"], tmp_path / "ledger")
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyIngestError)
    assert f"reading the state of asset {asset['id']} failed: GET /v1/assets/{asset['id']}: 503" in str(ended.error)


def test_upload_of_a_claimed_recording_names_the_run_and_when_its_lease_expires(
    connection: dict[str, Any], tmp_path: Path, recordings: dict[str, Path]
) -> None:
    ledger, source = Ledger(tmp_path / "ledger"), recordings["audio"]
    ledger.check()
    identity = find_file(source).identity(project_id=connection["extra"]["project_id"])
    other = ClaimOwner("dag.other", "night 0", "a try")
    assert ledger.create_version(Version(identity.key, 1, other, str(source), identity.to_dict()))
    ledger.write_lease(other, time.time() + 600)
    ended = upload(source, ledger=str(tmp_path / "ledger"))
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyClaimedError)
    assert re.fullmatch(
        rf"{source} was not uploaded: dag\.other, run night 0 holds the claim on it \(.* UTC\); another run "
        rf"supersedes the claim if the lease is not renewed by .* UTC \(ledger {ledger.uri}\)\. A retry of this task "
        r"returns that run's asset, or supersedes the claim",
        str(ended.error),
    )


@pytest.mark.parametrize(
    ("state", "reason", "advice"),
    [
        (
            "processing",
            None,
            "in time: it was still processing. Clear the task, which polls again, and give it a",
        ),
        ("pending_upload", None, "pending_upload. Its bytes have not all arrived: look at the task that uploads it"),
        ("pending_payment", None, "pending_payment. Top up the credits"),
        (None, "no answer", "could read its state; last poll: no answer. Once Roughy can be reached, clear the task"),
        (None, "is a triggerer running?", "is a triggerer running? Once Roughy can be reached"),
    ],
)
def test_timeout_says_what_to_do(state: str | None, reason: str | None, advice: str) -> None:
    assert advice in str(RoughyTimeoutError(NOBODY, kind="asset", state=state, reason=reason))


@pytest.mark.parametrize(
    ("policy", "does"),
    [("fail", "this task fails"), ("skip", "is skipped"), ("return", "ends without"), ("wait", "waits for that")],
)
def test_unpaid_asset_says_what_the_task_does(
    policy: Any, does: str, roughy: Emulator, hook: RoughyHook, caplog: pytest.LogCaptureFixture
) -> None:
    asset = hook.get_asset(roughy.seed_asset("pending_payment"))
    ResourcePoller(ASSET, asset.id, log=logging.getLogger(), on_pending_payment=policy).on_resource(asset)
    assert f"{does}" in caplog.text
    assert f"as on_pending_payment={policy!r}" in caplog.text


@pytest.mark.parametrize(
    ("note", "why"),
    [
        ({}, "its 'newest' is missing"),
        ({"newest": 3, "newest_ids": [], "waiting": {}}, "its 'newest' is not a date and time"),
    ],
)
def test_damaged_baseline_names_its_object_and_what_is_wrong(note: dict[str, Any], why: str) -> None:
    with pytest.raises(RoughyLedgerError, match=rf"note-1\.json of ledger /l, cannot be read: {why}\. Restore"):
        Baseline.from_json(note, "note-1.json of ledger /l")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "it is not JSON that can be read"),
        (b"{}", "its field 'data' is missing"),
        (b'{"data": {}}', "its field 'asset_id' is missing"),
        (b'{"data": {"asset_id": "x"}}', "its 'asset_id' is not a UUID"),
        (b"[]", "it is not a JSON object with an object `data`"),
        (b'{"data": {"asset_id": "%b"}, "type": 3}' % NOBODY.encode(), "its 'type' has another form"),
        (b'{"data": 1, "data": 2}', "a key is given twice"),
    ],
)
def test_body_that_is_no_webhook_is_explained(body: bytes, why: str) -> None:
    with pytest.raises(RoughyWebhookError, match=f"The body is not a webhook of Roughy: {why}"):
        messages.parse(body, id="msg_1")
