"""Shared fixtures: an emulator for each test, and an Airflow with a connection to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Before Airflow is imported for the first time: it reads them once. `make test` gives a new home to each run, and each
# of the processes that share the tests (pytest-xdist) has one of its own in there.
HOME = Path(os.environ.get("AIRFLOW_HOME") or tempfile.mkdtemp(prefix="airflow-"))
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    HOME /= worker
os.environ["AIRFLOW_HOME"] = str(HOME)
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"
DAGS_FOLDER = HOME / "dags"
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(DAGS_FOLDER)

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.hooks import RoughyHook
from harness import media
from harness.npm import beside_packages, has_node
from tests.properties import register_profiles

register_profiles()

#: They have the fixture `roughy`, an emulator that prepares assets immediately, and those of batches.
pytest_plugins = ["airflow_provider_roughy.emulator.pytest", "tests.commanding", "tests.ingesting"]

#: Tests that do not depend on the version of Airflow, so that they run only on the newest one: files and folders.
ONCE = {
    "emulator",
    "test_acknowledged.py",
    "test_api.py",
    "test_backlog.py",
    "test_claims.py",
    "test_client.py",
    "test_conformance.py",
    "test_decide.py",
    "test_decode.py",
    "test_discover.py",
    "test_docs.py",
    "test_download.py",
    "test_identity.py",
    "test_ingest_again.py",
    "test_ingest_nights.py",
    "test_ingest_properties.py",
    "test_ledger.py",
    "test_legacy.py",
    "test_lies.py",
    "test_lifecycle.py",
    "test_listing.py",
    "test_many.py",
    "test_polling_in_time.py",
    "test_probe.py",
    "test_referees.py",
    "test_report_page.py",
    "test_s3.py",
    "test_s3_downloads.py",
    "test_soak.py",
    "test_storage.py",
    "test_tus.py",
    "test_tus_properties.py",
    "test_upgrades.py",
    "test_watching.py",
    "test_watching_properties.py",
    "test_webhooks.py",
}


#: Live tests that run in one process, one after another: those of a group share an Airflow, or each has its own. The
#: longest groups are first; a process that has finished one takes the next. All other live tests are the first group.
#: The tests of a group run in its order: those that kill processes of an Airflow come after those that count them.
LIVE_GROUPS = [
    ("test_odd_replies", "test_two_triggerers", "live/test_watching", "live/test_produce"),
    ("test_demo",),
    ("test_wait_without_a_triggerer",),
    ("test_kills",),
    ("test_celery",),
    ("test_bursts",),
    ("test_harness",),
]


def live_place(nodeid: str) -> tuple[int, int]:
    """Return the group of a live test, in the order of :data:`LIVE_GROUPS`, and its place there; 0 for all others."""
    for group, names in enumerate(LIVE_GROUPS, 1):
        for place, name in enumerate(names):
            if name in nodeid:
                return group, place
    return 0, 0


class _ByAirflow(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist is untyped.
    """Gives the live tests of a group to one process.

    By pytest-xdist's own groups they are not kept together: it writes those into ids that pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        return str(live_place(nodeid)[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Choose how the tests are distributed to processes: ``loadgroup`` is for the live ones."""
    return _ByAirflow(config, log) if config.getoption("dist") == "loadgroup" else None


def _top(path: Path) -> str:
    """Return the file or folder of ``tests`` that a path is in; empty for that folder itself."""
    parts = path.relative_to(Path(__file__).parent).parts
    return parts[0] if parts else ""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the modules of which the marks of a run (Makefile) select no test: to import them takes seconds."""
    marks, top = config.getoption("markexpr"), _top(collection_path)
    if marks == "live":
        is_left_out = top not in {"live", ""}
    else:
        is_left_out = (top == "live" and marks.startswith("not live")) or (top in ONCE and marks.endswith(" not once"))
    return is_left_out or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that the older lines leave out, and sort the live ones by group."""
    for item in items:
        if _top(item.path) in ONCE:
            item.add_marker("once")
    items.sort(key=lambda item: live_place(item.nodeid))


@pytest.fixture
def connection(roughy: Emulator, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Airflow's connection ``roughy_default``, which leads to it; impatient, so that faults cost little."""
    fields = roughy.airflow_connection
    fields["extra"] = {**fields["extra"], "timeout": 1.5}
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(fields))
    return fields


@pytest.fixture
def patient(connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same connection, where nothing is meant to take too long, however busy the machine is."""
    fields = {**connection, "extra": {**connection["extra"], "timeout": 60}}
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(fields))


@pytest.fixture
def hook(connection: dict[str, object]) -> Iterator[RoughyHook]:
    with RoughyHook() as hook:
        yield hook


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small real media, made once: read only."""
    folder = tmp_path_factory.mktemp("recordings")
    files = {
        "audio": media.make_audio(folder / "speech.mp3", seconds=3),
        "video": media.make_video(folder / "clip.mp4", seconds=2),
    }
    for name in ("audio", "video"):
        files[name] = Path(files[name] or folder / {"audio": "speech.mp3", "video": "clip.mp4"}[name])
    return files


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of an S3."""
    moto = pytest.importorskip("moto.server", reason="the group s3 is installed for the main version of Airflow only")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of it, with an empty bucket ``recordings``. Airflow's connection ``s3`` leads there as well."""
    login = {"login": "key", "password": "secret"}
    extra = {"endpoint_url": s3_url, "region_name": "us-east-1"}
    monkeypatch.setenv("AIRFLOW_CONN_S3", json.dumps({"conn_type": "aws", **login, "extra": extra}))
    client = pytest.importorskip("boto3").client(
        "s3", endpoint_url=s3_url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket="recordings")
    for each in client.list_objects_v2(Bucket="recordings").get("Contents", []):
        client.delete_object(Bucket="recordings", Key=each["Key"])
    return client


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Airflow's metadata database, made once, and its DAGs: the examples."""
    shutil.copytree(Path(__file__).parent.parent / "example_dags", DAGS_FOLDER, dirs_exist_ok=True)
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def node() -> Path:
    """A folder with the reference TUS client and server in it."""
    if not has_node():
        pytest.skip("the TUS referees need node and npm, which are not installed")
    return beside_packages(Path(__file__).parent / "node", "tests")
