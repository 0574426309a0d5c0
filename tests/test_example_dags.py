"""The example DAGs and the README's, run by Airflow's own ``dag.test`` against the emulator."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import airflow
import pytest

from airflow_provider_roughy import compat
from airflow_provider_roughy.compat import TriggerEvent
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.observability.links import asset_links
from airflow_provider_roughy.sensors import RoughyAssetSensor
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger
from harness import media
from tests.conftest import DAGS_FOLDER
from tests.running import started_by, whenever
from tests.scheduling import Scheduler
from tests.watching import INTERVAL, Watching, begun, rounds

ROOT = Path(__file__).parent.parent
#: Those that need what an older Airflow does not have: approval by a person came with 3.1, watchers with 3.0.
TOO_NEW = {"roughy_approve_cut"} if airflow.__version__.startswith(("2.", "3.0.")) else set()
TOO_NEW |= {"roughy_react_to_media"} if airflow.__version__.startswith("2.") else set()
EXAMPLES = sorted(path for path in (ROOT / "example_dags").glob("*.py") if path.stem not in TOO_NEW)

pytestmark = [
    pytest.mark.usefixtures("airflow_db", "patient"),
    # Airflow runs every task of a DAG here, one after the other.
    pytest.mark.timeout(300),
]


@pytest.fixture(autouse=True, scope="module")
def one_api_server() -> Iterator[None]:
    """Let Airflow 3.0 to 3.2 keep the API server that they build for each task of a DAG, as 3.3 does."""
    with pytest.MonkeyPatch.context() as patch:
        if airflow.__version__.startswith(("3.0.", "3.1.", "3.2.")):
            supervisor = import_module("airflow.sdk.execution_time.supervisor")
            patch.setattr(supervisor, "in_process_api_server", cache(supervisor.in_process_api_server))
        yield


def load(path: Path) -> ModuleType:
    """Run a DAG file as Airflow does, from its text."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(path.read_text(), str(path), "exec"), vars(module))
    return module


class Run:
    """A finished run of a DAG.

    :param dag: The DAG.
    :param conf: Its parameters.
    """

    def __init__(self, dag: Any, conf: dict[str, Any]) -> None:
        self._run = dag.test(run_conf=conf)
        self.state = str(getattr(self._run.state, "value", self._run.state))

    def states(self) -> dict[str, list[str]]:
        """Return the states of all task instances, by task."""
        found: dict[str, list[str]] = {}
        for instance in sorted(self._run.get_task_instances(), key=lambda instance: instance.map_index):
            found.setdefault(instance.task_id, []).append(str(getattr(instance.state, "value", instance.state)))
        return found

    def names(self, task_id: str) -> list[str | None]:
        """Return what the grid calls the instances of a mapped task, save those that never started."""
        return [
            instance.rendered_map_index
            for instance in sorted(self._run.get_task_instances(), key=lambda instance: instance.map_index)
            if instance.task_id == task_id and instance.state != "upstream_failed"
        ]

    def instance(self, task_id: str) -> Any:
        """Return the one instance of a task."""
        (instance,) = (found for found in self._run.get_task_instances() if found.task_id == task_id)
        return instance

    def result(self, task_id: str) -> Any:
        """Return what a task returned."""
        return self.instance(task_id).xcom_pull(task_ids=task_id)

    def xcom(self, task_id: str, key: str) -> Any:
        """Return what a task has pushed."""
        return self.instance(task_id).xcom_pull(task_ids=task_id, key=key)


def run(name: str, **conf: Any) -> Run:
    return Run(load(DAGS_FOLDER / f"{name}.py").dag, conf)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_needs_no_connection_to_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_ROUGHY_DEFAULT")
    dag = load(path).dag
    assert dag.dag_id == path.stem
    assert dag.doc_md
    assert all(task.retries >= 1 for task in dag.tasks)


def test_ingest_one(roughy: Emulator, recordings: dict[str, Path]) -> None:
    roughy.progression = "seconds=1"
    ended = run("roughy_ingest_one", source=str(recordings["audio"]))
    assert ended.state == "success"
    assert ended.states() == {name: ["success"] for name in ("upload", "wait_until_ready", "use", "delete")}
    assert (
        ended.result("use")
        == f"audio of {ended.result('wait_until_ready')['duration_seconds']} s, "
        + str(recordings["audio"].stat().st_size)
        + " bytes"
    )
    assert "download_url" not in ended.result("wait_until_ready")
    assert roughy.assets == [], "the teardown left the asset behind"


def test_ingest_folder(roughy: Emulator, recordings: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(recordings["audio"], tmp_path / "a.mp3")
    (tmp_path / "b.mp3").write_text("These are notes, whatever the name says. " * 50)
    media.corrupt(Path(shutil.copy(recordings["video"], tmp_path / "c.mp4")))
    shutil.copy(recordings["video"], tmp_path / "d.mp4")
    ended = run("roughy_ingest_folder", folder=str(tmp_path))
    states = ended.states()
    assert states["upload"] == ["success", "failed", "success", "success"]
    assert states["wait"] == ["success", "failed", "success"]
    assert states["report"] == ["success"]
    assert ended.state == "success", "one bad file sank the batch"
    assert ended.result("report")["ready"] == 2
    assert ended.names("upload") == ["a.mp3", "b.mp3", "c.mp4", "d.mp4"]
    assert sorted(map(str, ended.names("wait"))) == sorted(asset["id"] for asset in roughy.assets)


def test_branch_on_payment_when_it_is_paid(roughy: Emulator, recordings: dict[str, Path]) -> None:
    ended = run("roughy_branch_on_payment", source=str(recordings["audio"]))
    assert ended.state == "success"
    assert ended.states() == {
        "upload": ["success"],
        "wait_until_settled": ["success"],
        "paid": ["success"],
        "ask_for_top_up": ["skipped"],
        "wait_for_top_up": ["skipped"],
        "go_on": ["success"],
    }


def test_branch_on_payment_when_it_is_not(roughy: Emulator, tmp_path: Path) -> None:
    roughy.balance = 1
    source = media.make_audio(tmp_path / "long.wav", seconds=61, format="wav")

    def asked() -> bool:
        """Whether the second sensor has looked: the first one saw the asset unpaid, and so did it."""
        looks = [request for request in roughy.requests if request.method == "GET" and "/v1/assets/" in request.path]
        return len(looks) >= 3

    with whenever(asked, lambda: roughy.top_up(10)):
        ended = run("roughy_branch_on_payment", source=str(source))
    assert ended.state == "success"
    assert set(map(tuple, ended.states().values())) == {("success",)}
    (asset,) = roughy.assets
    assert [state for state, _ in asset["states"]] == ["pending_upload", "processing", "pending_payment", "ready"]
    assert ended.result("go_on") == asset["id"]


@pytest.mark.timeout(600)
def test_nightly_batch_of_all_sorts(roughy: Emulator, recordings: dict[str, Path], tmp_path: Path) -> None:
    # Enough for the one that is ready, whoever comes first, and for neither of the long ones.
    roughy.balance = 2
    folder, ledger = tmp_path / "recordings", tmp_path / "ledger"
    folder.mkdir()
    refused = folder / "b.mp3"
    refused.write_text("These are notes, whatever the name says. " * 50)
    corrupt = media.corrupt(Path(shutil.copy(recordings["video"], folder / "c.mp4")))
    unpaid = [media.make_long_audio(folder / name, seconds=sec) for name, sec in (("a.wav", 200), ("d.wav", 210))]
    ready = Path(shutil.copy(recordings["audio"], folder / "e.mp3"))
    first = run("roughy_nightly_batch", folder=str(folder), ledger=str(ledger))

    assert first.states() == {name: ["success"] for name in ("ingest", "go_on", "notify_unpaid", "notify_failed")}
    assert first.state == "success"
    assert first.names("go_on") == [ready.name]
    told, *named = first.result("notify_unpaid").splitlines()
    assert "Top up" in told
    assert sorted(named) == [str(path) for path in unpaid]
    [failed] = [asset for asset in roughy.assets if asset["state"] == "failed"]
    lines = sorted(first.result("notify_failed").splitlines())
    assert lines[0].startswith(f"{refused}: ")
    assert "neither audio nor video" in lines[0]
    assert lines[1].startswith(f"{corrupt}: Asset {failed['id']} failed: {failed['error_code']}")

    # After a top-up the next night reports the unpaid ones as ready, and uploads nothing.
    roughy.top_up(10)
    roughy.clear_requests()
    second = run("roughy_nightly_batch", folder=str(folder), ledger=str(ledger))
    assert second.states() == {
        "ingest": ["success"],
        "go_on": ["success", "success"],
        "notify_unpaid": ["skipped"],
        "notify_failed": ["skipped"],
    }
    assert set(second.names("go_on")) == {path.name for path in unpaid}
    assert {request.method for request in roughy.requests} == {"GET"}


def test_nightly_batch_of_nothing(roughy: Emulator, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    ended = run("roughy_nightly_batch", folder=str(folder), ledger=str(tmp_path / "ledger"))
    assert ended.state == "success"
    assert ended.states() == {
        "ingest": ["success"],
        **{name: ["skipped"] for name in ("go_on", "notify_unpaid", "notify_failed")},
    }
    assert roughy.requests == []


@pytest.mark.timeout(600)
def test_archive(roughy: Emulator, recordings: dict[str, Path], tmp_path: Path) -> None:
    archive, places = tmp_path / "archive", {name: str(tmp_path / name) for name in ("ledger", "plans", "captions")}
    audio = recordings["audio"].read_bytes()
    for number in range(200):
        folder = archive / f"{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.mp3").write_bytes(audio + bytes(number))
    first = run("roughy_archive", archive=str(archive), max_credits=150, **places)
    states = {"plan": ["success"], "ingest": ["success"] * 3, "captions": ["success"], "summary": ["success"]}
    assert first.states() == states
    assert "150 ready" in first.result("summary")
    assert len(roughy.assets) == 150
    [manifest] = (tmp_path / "plans").glob("*.jsonl")
    assert manifest.read_text().count('"status": "deferred"') == 50
    assert (tmp_path / "plans" / f"{manifest.stem}-results" / "index.html").exists()

    # The next run plans the rest, and a third one nothing.
    assert run("roughy_archive", archive=str(archive), **places).state == "success"
    assert len({asset["sha256"] for asset in roughy.assets}) == len(roughy.assets) == 200
    roughy.clear_requests()
    wanted = {f"{path.relative_to(archive)}.srt" for path in archive.glob("*/*")}
    assert {str(path.relative_to(tmp_path / "captions")) for path in (tmp_path / "captions").glob("*/*")} == wanted
    third = run("roughy_archive", archive=str(archive), **places)
    assert third.states() == states
    assert {request.method for request in roughy.requests} <= {"GET"}


@pytest.mark.timeout(600)
def test_rough_cut(roughy: Emulator, recordings: dict[str, Path], tmp_path: Path) -> None:
    source, target = tmp_path / "recordings", tmp_path / "rough cuts"
    source.mkdir()
    media.make_talk(source / "talk.mp4", loud=[(1, 2), (3, 4.5)], seconds=6)
    shutil.copy(recordings["audio"], source / "call.mp3")
    (source / "notes.mp3").write_text("These are notes, whatever the name says. " * 50)
    ended = run("roughy_rough_cut", source=str(source), target=str(target), ledger=str(tmp_path / "ledger"))
    assert ended.states() == {"ingest": ["success"], "produce": ["success"]}
    assert {str(path.relative_to(target)) for path in target.rglob("*.*") if path.is_file()} == {
        *(f"talk.mp4/{name}" for name in ("captions.srt", "captions.vtt", "render.mp4", "timeline.fcpxml")),
        *(f"call.mp3/{name}" for name in ("captions.srt", "captions.vtt", "render.m4a")),
    }
    sizes = {render["asset_id"]: render["size_bytes"] for render in roughy.renders}
    by_name = {Path(file).name: id for id, file in ended.xcom("ingest", "sources").items()}
    assert (target / "talk.mp4" / "render.mp4").stat().st_size == sizes[by_name["talk.mp4"]]
    assert ended.xcom("produce", "left_out").keys() == {by_name["call.mp3"]}

    again = run("roughy_rough_cut", source=str(source), target=str(target), ledger=str(tmp_path / "ledger"))
    assert (again.state, again.result("produce")) == ("success", []), "there is nothing new"
    assert len(roughy.cuts) == 2


@pytest.mark.skipif(
    airflow.__version__.startswith(("2.", "3.0.", "3.1.", "3.2.")),
    reason="before 3.3 dag.test() waits for no person: its triggerer cannot ask for the answer",
)
@pytest.mark.parametrize("answer", ["Approve", "Reject"])
def test_approve_cut(
    roughy: Emulator, recordings: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    caplog.set_level(logging.INFO, "airflow.sdk.definitions.dag")
    with whenever(lambda: "Waiting for Human-in-the-loop" in caplog.text, lambda: respond(answer)):
        ended = run("roughy_approve_cut", source=str(recordings["video"]), target=str(tmp_path))
    then = "success" if answer == "Approve" else "skipped"
    assert ended.states() == {
        **{name: ["success"] for name in ("upload", "cut", "captions", "approve")},
        **{name: [then] for name in ("render", "download")},
    }
    assert ended.state == "success"
    assert (tmp_path / "captions.srt").exists()
    assert (tmp_path / "rough-cut.mp4").exists() == (answer == "Approve")
    assert [render["cut_id"] for render in roughy.renders] == [ended.result("cut")] * (answer == "Approve")


def respond(answer: str) -> None:
    """Answer what is asked under "Required Actions", as Airflow's API does for whoever is logged in."""
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.datamodels.hitl import UpdateHITLDetailPayload
    from airflow.api_fastapi.core_api.routes.public.hitl import update_hitl_detail
    from airflow.models.dagbag import DBDagBag
    from airflow.models.hitl import HITLDetail
    from airflow.utils.session import create_session

    # Airflow 3.4 asks for them.
    more: dict[str, Any] = {"dag_bag": DBDagBag()} if "dag_bag" in signature(update_hitl_detail).parameters else {}
    with create_session() as session:
        (asked,) = session.query(HITLDetail).filter_by(responded_at=None)
        update_hitl_detail(
            asked.task_instance.dag_id,
            asked.task_instance.run_id,
            asked.task_instance.task_id,
            UpdateHITLDetailPayload(chosen_options=[answer]),
            SimpleAuthManagerUser(username="editor", role="user"),
            session,
            **more,
        )


class EdgeTriggered(RoughyAssetsReadyTrigger):
    """Tells of each asset once, as most triggers do of what they see."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        told: set[str] = set()
        while True:
            ready = [asset.id async for asset in RoughyHook().alist_assets(state="ready")]
            if new := [id for id in ready if id not in told]:
                told.update(new)
                yield TriggerEvent({"ready": new})
            await asyncio.sleep(self.poll_interval)


@pytest.mark.skipif("roughy_react_to_media" in TOO_NEW, reason="Airflow 2 has no watchers of assets")
@pytest.mark.skipif(compat._LINE >= (3, 4), reason="Airflow 3.4 has a queue row for each event, and leaves none behind")
@pytest.mark.parametrize(
    ("cls", "loses"),
    [pytest.param(EdgeTriggered, True, marks=pytest.mark.once), (RoughyAssetsReadyTrigger, False)],
)
def test_events_that_airflow_leaves_lying_cost_no_asset(
    roughy: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cls: type[RoughyAssetsReadyTrigger],
    loses: bool,
) -> None:
    """A run takes the events up to the first one of a burst; those after it wait for another one to come."""
    ledger = tmp_path / "taken"
    monkeypatch.setenv("ROUGHY_TAKEN", str(ledger))
    path = DAGS_FOLDER / "roughy_react_to_media.py"
    scheduler, take = Scheduler(path), load(path).dag.get_task("take").python_callable
    taken: list[str] = []

    def look() -> None:
        for run_id, extras in scheduler.look():
            taken.extend(take(**started_by(*extras, run=run_id)))

    async def run() -> list[str]:
        ids: list[str] = []
        watching = Watching(cls(ledger=ledger, poll_interval=INTERVAL))
        await (rounds(roughy) if loses else begun(ledger))
        for _ in range(3):
            ids.append(roughy.seed_asset())
            await watching.told(ids[-1])
            scheduler.store(watching.events[-1])
        # The scheduler looks after the burst, in which each event had one more asset to tell of, or only that.
        look()
        assert taken == ids[:1]
        # No other asset ever becomes ready.
        for _ in range(6):
            stored = len(watching.events)
            await rounds(roughy)
            for event in watching.events[stored:]:
                scheduler.store(event)
            look()
        await watching.stop()
        return ids

    ids = asyncio.run(run())
    assert taken == (ids[:1] if loses else ids)


@pytest.mark.once
def test_react_to_media_by_hand(roughy: Emulator) -> None:
    ended = run("roughy_react_to_media")
    assert ended.state == "success"
    assert ended.states() == {"take": ["success"], "caption.cut": ["skipped"], "caption.captions": ["skipped"]}
    assert roughy.requests == [], "no event started it, and there is nothing to do"


def test_the_dag_of_the_readme_runs(roughy: Emulator, recordings: dict[str, Path]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "with DAG(" in block)
    try:
        import airflow.sdk  # noqa: F401  # Airflow 3
    except ImportError:
        block = block.replace("from airflow.sdk import", "from airflow_provider_roughy.compat import")
    block = block.replace("/data/interview.mp3", str(recordings["audio"]))
    path = DAGS_FOLDER / "interviews.py"
    path.write_text(block)
    ended = Run(load(path).dag, {})
    assert ended.state == "success"
    assert ended.states() == {name: ["success"] for name in ("upload", "wait", "use")}


CALLBACK_DAG = """
from datetime import datetime
from pathlib import Path

from airflow_provider_roughy.compat import DAG

from airflow_provider_roughy.sensors import RoughyAssetSensor


def take_note(context):
    error = context["exception"]
    Path("{note}").write_text(f"{{type(error).__name__}} {{error.asset_id}}")


with DAG("tells_why", schedule=None, start_date=datetime(2026, 1, 1), catchup=False) as dag:
    RoughyAssetSensor(task_id="wait", asset_id="{asset_id}", retries=3, on_failure_callback=take_note)
"""


def test_a_callback_gets_the_typed_error_and_no_retry_is_burned(roughy: Emulator, tmp_path: Path) -> None:
    asset_id = roughy.seed_asset(state="pending_payment")
    note = tmp_path / "note"
    path = DAGS_FOLDER / "tells_why.py"
    path.write_text(CALLBACK_DAG.format(note=note, asset_id=asset_id))
    ended = Run(load(path).dag, {})
    assert ended.states() == {"wait": ["failed"]}
    if not airflow.__version__.startswith(("3.0.", "3.1.", "3.2.")):  # Their dag.test() calls no callbacks.
        assert note.read_text() == f"RoughyPaymentRequiredError {asset_id}"
    assert len([request for request in roughy.requests if request.path.endswith(asset_id)]) == 1


LINKED_DAG = """
from datetime import datetime

from airflow_provider_roughy.compat import DAG

from airflow_provider_roughy.sensors import RoughyAssetSensor

with DAG("is_linked", schedule=None, start_date=datetime(2026, 1, 1), catchup=False) as dag:
    RoughyAssetSensor(task_id="wait", asset_id="{asset_id}")
"""


def test_airflow_leads_from_a_task_to_its_asset(roughy: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ROUGHY__ASSET_LINK", "https://media.example.org/assets/{asset_id}")
    # The class was made before.
    monkeypatch.setattr(RoughyAssetSensor, "operator_extra_links", asset_links())
    asset_id = roughy.seed_asset()
    path = DAGS_FOLDER / "is_linked.py"
    path.write_text(LINKED_DAG.format(asset_id=asset_id))
    dag = load(path).dag
    ended = Run(dag, {})
    # What Airflow stores of a DAG knows its links by the provider's metadata (Airflow 2), or as XComs.
    serialized: Any = import_module("airflow.serialization.serialized_objects")
    stored = getattr(serialized, "DagSerialization", None) or serialized.SerializedDAG
    # The scheduler, which needs no links, leaves them out for the whole process.
    monkeypatch.setattr(stored, "_load_operator_extra_links", True)
    task = stored.from_dict(stored.to_dict(dag)).get_task("wait")
    link = task.get_extra_links(ended.instance("wait"), "Roughy asset")
    assert link == f"https://media.example.org/assets/{asset_id}"
