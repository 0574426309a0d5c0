"""Events of a task's outlets, and its reports to Airflow's lineage."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import airflow
import pytest
from airflow.utils.session import create_session
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_roughy.compat import Asset, AssetAlias, BaseOperator, attach, get_hook_lineage_collector
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.get_provider_info import get_provider_info
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.observability import lineage
from airflow_provider_roughy.observability.outlets import MAX_IDS, Product, announce, ids_by_outcome
from airflow_provider_roughy.operators import (
    RoughyCreateUploadOperator,
    RoughyCutOperator,
    RoughyDeleteAssetOperator,
    RoughyDownloadOperator,
    RoughyExportCutOperator,
    RoughyIngestOperator,
    RoughyRenderOperator,
)
from airflow_provider_roughy.sensors import RoughyAssetSensor, RoughyCutSensor, RoughyRenderSensor
from airflow_provider_roughy.transfer.storage import asset_uri
from harness import media
from tests.conftest import DAGS_FOLDER
from tests.ingesting import add
from tests.running import Ended, TaskInstance, run_task, whenever
from tests.test_example_dags import Run, load
from tests.uploading import Store

AIRFLOW_2 = airflow.__version__.startswith("2.")
ID = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
#: Airflow's tables of events, and of DAGs that they start.
EVENT, QUEUE = (
    getattr(import_module(module), name)
    for module, names in [
        ("airflow.models.dataset", ["DatasetEvent", "DatasetDagRunQueue"])
        if AIRFLOW_2
        else ("airflow.models.asset", ["AssetEvent", "AssetDagRunQueue"])
    ]
    for name in names
)
#: Where a task waits.
MODES = pytest.mark.parametrize("mode", ["worker", "triggerer", "nowhere"])

# Airflow 2 asks its database when a sensor was first rescheduled.
pytestmark = pytest.mark.usefixtures("airflow_db", "patient")


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    """An emulator in which no state changes by itself."""
    with Emulator(progression="manual") as emulator:
        yield emulator


class Reader:
    """Runs tasks, and stores the events and lineage of the last process of each."""

    def __init__(self) -> None:
        context = import_module("airflow.utils.context" if AIRFLOW_2 else "airflow.sdk.execution_time.context")
        self.events: Any = context.OutletEventAccessors()
        self.collector: Any = get_hook_lineage_collector()

    def run(self, task: BaseOperator, *, meanwhile: Callable[[], Any] = lambda: None, **context: Any) -> Ended:
        """Run a task.

        :param task: The task.
        :param meanwhile: What happens while it waits outside of a process.
        :param context: More of Airflow's context.
        """
        task.outlets = [AssetAlias("media"), Asset(uri="x-team://night")]

        def wait() -> None:
            assert (self.announced, self.said) == ([], {}), "said too early"
            self._forget()
            meanwhile()

        self._forget()
        return run_task(task, before_resuming=wait, context={"outlet_events": self.events, **context})

    def _forget(self) -> None:
        """Forget what goes with a process."""
        self.events._dict.clear()
        for part in ("_inputs", "_outputs", "_input_counts", "_output_counts"):
            getattr(self.collector, part).clear()

    @property
    def announced(self) -> list[tuple[str, dict[str, Any]]]:
        """What the alias announces: URIs and extras."""
        events = getattr(
            self.events[AssetAlias("media")], "dataset_alias_events" if AIRFLOW_2 else "asset_alias_events"
        )
        if AIRFLOW_2:
            return [(event["dest_dataset_uri"], event["extra"]) for event in events]
        return [(event.dest_asset_key.uri, event.extra) for event in events]

    @property
    def said(self) -> dict[str, Any]:
        """What the plain asset says."""
        return dict(self.events[Asset(uri="x-team://night")].extra)

    @property
    def read(self) -> list[str]:
        """What was read, for Airflow's lineage; once each."""
        return self._uris("_inputs")

    @property
    def written(self) -> list[str]:
        """What was written, likewise."""
        return self._uris("_outputs")

    def _uris(self, part: str) -> list[str]:
        assert set(getattr(self.collector, f"{part[:-1]}_counts").values()) <= {1}, "told twice"
        return [asset.uri for asset, _ in getattr(self.collector, part).values()]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Airflow's own collector of lineage, with a reader."""
    if hasattr(get_hook_lineage_collector, "cache_clear"):
        readers = "airflow.sdk.plugins_manager.get_hook_lineage_readers_plugins"
        monkeypatch.setattr(readers, lambda: [object])
        get_hook_lineage_collector.cache_clear()
        yield Reader()
        get_hook_lineage_collector.cache_clear()
    else:
        monkeypatch.setattr("airflow.plugins_manager.hook_lineage_reader_classes", [object])
        monkeypatch.setattr("airflow.lineage.hook._hook_lineage_collector", None)
        yield Reader()


def uri(kind: str, id: str) -> str:
    return f"roughy://{kind}/{id}"


def run(roughy: Emulator, reader: Reader, task: BaseOperator, mode: str) -> Ended:
    """Run a task that waits where the mode says, and let Roughy finish its work once the task has looked."""

    def settle() -> None:
        roughy.settle()

    def looked() -> bool:
        return any(asked.method == "GET" and asked.path.startswith("/v1/") for asked in roughy.requests)

    if mode == "nowhere":
        roughy.progression = "immediate"
    roughy.clear_requests()
    with whenever(looked, settle) if mode == "worker" else nullcontext():
        ended = reader.run(task, meanwhile=settle)
    assert ended.state == "success", ended.error
    assert (ended.waited == "triggerer") == (mode == "triggerer")
    return ended


def waiting(mode: str) -> dict[str, Any]:
    """Return the options of a task that waits in a mode."""
    return {"poll_interval": 0.05, "timeout": 60, "deferrable": mode != "worker"}


# ---- Operators and sensors


@MODES
def test_upload_announces_its_asset_when_ready(
    roughy: Emulator, reader: Reader, recordings: dict[str, Path], mode: str
) -> None:
    source = recordings["audio"]
    upload = RoughyCreateUploadOperator(
        task_id="upload", source=f"file://conn@{source}", wait_for_completion=True, **waiting(mode)
    )
    asset_id = run(roughy, reader, upload, mode).result
    extra = {
        "asset_id": asset_id,
        "project_id": roughy.project_id,
        "duration_seconds": roughy.assets[0]["duration_seconds"],
        "source": f"file://{source}",
    }
    assert float(extra["duration_seconds"]) > 2
    assert reader.announced == [(uri("asset", asset_id), extra)]
    assert reader.said == {"state": "ready", **extra}
    assert (reader.read, reader.written) == ([f"file://{source}"], [uri("asset", asset_id)])


def test_upload_without_waiting_announces_nothing(
    roughy: Emulator, reader: Reader, recordings: dict[str, Path]
) -> None:
    source, store = recordings["audio"], Store()
    upload = RoughyCreateUploadOperator(task_id="upload", source=source)
    asset_id = reader.run(upload, task_state_store=store).result
    assert reader.announced == []
    assert reader.said == {"state": "uploaded", "asset_id": asset_id, "source": str(source)}
    assert (reader.read, reader.written) == ([f"file://{source}"], [uri("asset", asset_id)])

    # The retry of a task that was killed at its very end sends nothing, and says the same.
    roughy.settle()
    again = RoughyCreateUploadOperator(task_id="upload", source=source, wait_for_completion=True)
    assert reader.run(again, task_state_store=store).result == asset_id
    assert [announced for announced, _ in reader.announced] == [uri("asset", asset_id)]
    assert (reader.read, reader.written) == ([f"file://{source}"], [uri("asset", asset_id)])


@pytest.mark.parametrize("mode", ["worker", "reschedule", "triggerer", "nowhere"])
@pytest.mark.parametrize("kind", ["asset", "cut", "render"])
def test_sensor_announces_the_resource(roughy: Emulator, reader: Reader, kind: str, mode: str) -> None:
    sensor = {"asset": RoughyAssetSensor, "cut": RoughyCutSensor, "render": RoughyRenderSensor}[kind]
    ended_state = "ready" if kind == "asset" else "completed"
    state = ended_state if mode == "nowhere" else "processing"
    asset_id = roughy.seed_asset("ready" if kind != "asset" else state, duration_seconds=75)
    extra = {"asset_id": asset_id}
    if kind == "asset":
        extra |= {"project_id": roughy.project_id}
        id = asset_id
    else:
        cut_id = roughy.seed_cut("completed" if kind == "render" else state, asset_id=asset_id)
        id = cut_id if kind == "cut" else roughy.seed_render(state, asset_id=asset_id, cut_id=cut_id)
        extra |= {"cut_id": cut_id, f"{kind}_id": id}
    where = {"mode": "reschedule"} if mode == "reschedule" else {}
    deferrable = mode in ("triggerer", "nowhere")
    task: Any = sensor(
        **{f"{kind}_id": id}, task_id="wait", poke_interval=0.05, timeout=60, deferrable=deferrable, **where
    )
    run(roughy, reader, task, mode)
    (announced,) = reader.announced
    duration = announced[1].pop("duration_seconds", None)
    assert announced == (uri(kind, id), extra)
    assert bool(duration) == (kind == "asset")
    assert reader.said["state"] == ended_state
    assert (reader.read, reader.written) == ([uri(kind, id)], [])


@pytest.mark.parametrize("state", ["pending_payment", "failed"])
def test_resource_that_is_not_ready_is_not_announced(roughy: Emulator, reader: Reader, state: str) -> None:
    asset_id = roughy.seed_asset(state)
    sensor = RoughyAssetSensor(task_id="wait", asset_id=asset_id, on_pending_payment="return")
    ended = reader.run(sensor)
    assert reader.announced == []
    if state == "failed":
        assert (ended.state, reader.said) == ("failed", {})
    else:
        assert ended.state == "success"
        assert (reader.said["state"], reader.said["asset_id"]) == (state, asset_id)

    cut = RoughyCutOperator(task_id="cut", asset_id=asset_id, on_pending_payment="return")
    assert reader.run(cut).result is None
    assert reader.announced == []
    assert reader.said == ({} if state == "failed" else {"state": state, "asset_id": asset_id})


@MODES
def test_cuts_and_renders_are_announced_when_they_are_completed(
    roughy: Emulator, reader: Reader, recordings: dict[str, Path], mode: str
) -> None:
    asset_id = roughy.seed_asset(content=recordings["audio"].read_bytes(), extension="mp3", type="audio")
    if mode == "nowhere":
        # What they find is there already.
        cut_id = roughy.seed_cut(asset_id=asset_id)
        roughy.seed_render(asset_id=asset_id, cut_id=cut_id, output={"format": "mp3"})
    cut_id = run(roughy, reader, RoughyCutOperator(task_id="cut", asset_id=asset_id, **waiting(mode)), mode).result
    of_cut = {"asset_id": asset_id, "cut_id": cut_id}
    assert reader.announced == [(uri("cut", cut_id), of_cut)]
    assert reader.said == {"state": "completed", **of_cut}
    assert (reader.read, reader.written) == ([uri("asset", asset_id)], [uri("cut", cut_id)])

    render = RoughyRenderOperator(
        task_id="render", asset_id=asset_id, cut_id=cut_id, output={"format": "mp3"}, **waiting(mode)
    )
    render_id = run(roughy, reader, render, mode).result
    assert reader.announced == [(uri("render", render_id), {**of_cut, "render_id": render_id})]
    assert reader.read == [uri("asset", asset_id), uri("cut", cut_id)]
    assert reader.written == [uri("render", render_id)]


def test_cut_without_waiting_is_not_announced(roughy: Emulator, reader: Reader) -> None:
    asset_id = roughy.seed_asset()
    cut_id = reader.run(RoughyCutOperator(task_id="cut", asset_id=asset_id, wait_for_completion=False)).result
    assert reader.announced == []
    assert reader.said == {"state": "pending", "asset_id": asset_id, "cut_id": cut_id}


@pytest.mark.once
@pytest.mark.parametrize("mode", ["worker", "triggerer"])
def test_batch_announces_each_ready_recording(
    roughy: Emulator, reader: Reader, recordings: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    for name in ("a #1.mp3", "b.mp3"):
        shutil.copy(recordings["audio"], folder / name)
    (folder / "text.mp3").write_text("No recording. " * 50)
    media.corrupt(Path(shutil.copy(recordings["video"], folder / "cut off.mp4")))
    ingest = RoughyIngestOperator(
        task_id="ingest", source=str(folder), ledger=str(tmp_path / "ledger"), on_failed="return", **waiting(mode)
    )
    ready = run(roughy, reader, ingest, mode).result
    sources = {extra["asset_id"]: extra["source"] for _, extra in reader.announced}
    assert [announced for announced, _ in reader.announced] == [uri("asset", id) for id in ready]
    assert sorted(sources.values()) == [str(folder / "a #1.mp3"), str(folder / "b.mp3")]
    assert {extra["project_id"] for _, extra in reader.announced} == {roughy.project_id}
    (failed,) = [asset["id"] for asset in roughy.assets if asset["id"] not in ready]
    assert reader.said == {
        "project_id": roughy.project_id,
        "counts": {"ready": 2, "failed": 1, "rejected": 1},
        "ready": ready,
        "pending_payment": [],
        "failed": [failed],
    }
    assert sorted(reader.read) == [f"file://{folder}/a %231.mp3", f"file://{folder}/b.mp3"]
    assert reader.written == [uri("asset", id) for id in ready]


@pytest.mark.parametrize(("timeout", "announced"), [(None, 100), ("60", 150)])
def test_announcements_are_limited_by_the_api_timeout(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, timeout: str | None, announced: int
) -> None:
    if timeout is not None:
        monkeypatch.setenv("AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT", timeout)
    task = BaseOperator(task_id="task", outlets=[AssetAlias("media")])
    products = [Product(uri("asset", ID), {"number": number}) for number in range(150)]
    context: Any = {"outlet_events": reader.events}
    announce(task, context, products, {})
    more = {} if announced == 150 else {"omitted": 50}
    assert [extra for _, extra in reader.announced] == [{"number": number, **more} for number in range(announced)]


def test_extra_of_ten_thousand_recordings_is_below_100_kb() -> None:
    told = ids_by_outcome({"ready": [ID] * 10_000, "pending_payment": [ID]})
    assert (len(told["ready"]), told["pending_payment"], told["omitted"]) == (MAX_IDS, [ID], {"ready": 9000})
    assert len(json.dumps(told)) < 100_000


def test_written_files_are_announced_by_uri(
    roughy: Emulator, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset_id = roughy.seed_asset(duration_seconds=75, content=b"moving pictures", extension="mp4", type="video")
    cut_id = roughy.seed_cut(asset_id=asset_id, segments=[(1, 2)], frame_rate=25)
    # A path that is none of its own.
    monkeypatch.chdir(tmp_path)
    download = RoughyDownloadOperator(task_id="download", target="take #1.mp4", asset_id=asset_id)
    assert reader.run(download).result == "take #1.mp4"
    extra = {"target": "take #1.mp4", "asset_id": asset_id}
    assert reader.announced == [(f"file://{tmp_path}/take %231.mp4", extra)]
    assert reader.said == {"state": "written", **extra}
    assert (reader.read, reader.written) == ([uri("asset", asset_id)], [f"file://{tmp_path}/take %231.mp4"])

    target = f"file://{tmp_path}/talk.edl"
    reader.run(RoughyExportCutOperator(task_id="export", cut_id=cut_id, target=target, format="edl"))
    assert reader.announced == [(target, {"target": target, "cut_id": cut_id, "format": "edl"})]
    assert (reader.read, reader.written) == ([uri("cut", cut_id)], [target])


@pytest.mark.parametrize("overwrite", ["skip", "fail"])
def test_existing_file_is_announced_by_retries_only(
    roughy: Emulator, reader: Reader, tmp_path: Path, overwrite: Any
) -> None:
    """An earlier try may have written the file, and have been killed before Airflow stored its events."""
    asset_id = roughy.seed_asset(type="video", content=b"moving pictures")
    cut_id = roughy.seed_cut(asset_id=asset_id, segments=[(1, 2)], frame_rate=25)

    def announced(try_number: int) -> list[tuple[int, str]]:
        ti = TaskInstance()
        ti.try_number = try_number
        found = []
        options = {"task_id": "task", "overwrite": overwrite}
        for task in (
            RoughyDownloadOperator(target=tmp_path / "a.mp4", asset_id=asset_id, **options),
            RoughyExportCutOperator(target=tmp_path / "a.edl", cut_id=cut_id, format="edl", **options),
        ):
            assert reader.run(task, ti=ti).state == "success"
            found.append((len(reader.announced), reader.said["state"]))
        return found

    assert announced(1) == [(1, "written")] * 2
    assert announced(1) == [(0, "unchanged")] * 2
    assert announced(2) == [(1, "unchanged")] * 2


def test_storage_uri_is_announced_once_without_credentials(
    roughy: Emulator, reader: Reader, recordings: dict[str, Path]
) -> None:
    storage = MemoryFileSystem()
    attach("memory", conn_id="me").fs = storage
    storage.pipe("/bucket/talk.mp3", recordings["audio"].read_bytes())
    upload = RoughyCreateUploadOperator(task_id="upload", source="memory://me@bucket/talk.mp3")
    ended = reader.run(upload)
    assert ended.state == "success", ended.error
    asset_id = ended.result
    assert reader.said["source"] == "memory://bucket/talk.mp3"
    assert (reader.read, reader.written) == (["memory://bucket/talk.mp3"], [uri("asset", asset_id)])

    roughy.settle()
    reader.run(RoughyDownloadOperator(task_id="download", target="memory://me@bucket/out/", asset_id=asset_id))
    target = f"memory://bucket/out/{asset_id}.mp3"
    assert reader.announced == [(target, {"target": target, "asset_id": asset_id})]
    assert (reader.read, reader.written) == ([uri("asset", asset_id)], [target])


def test_deletion_announces_nothing(roughy: Emulator, reader: Reader) -> None:
    asset_id = roughy.seed_asset()
    for state in ("deleted", "gone"):
        reader.run(RoughyDeleteAssetOperator(task_id="delete", asset_id=asset_id))
        assert reader.announced == []
        assert reader.said == {"state": state, "asset_id": asset_id}


# ---- Errors fail no task


def test_task_runs_without_outlets(roughy: Emulator, reader: Reader) -> None:
    sensor = RoughyAssetSensor(task_id="wait", asset_id=roughy.seed_asset())
    assert run_task(sensor, context={"outlet_events": reader.events}).state == "success"
    assert len(reader.events) == 0
    sensor.outlets = [AssetAlias("media")]
    assert run_task(sensor).state == "success"


def test_error_of_an_outlet_event_does_not_fail_the_task(
    roughy: Emulator, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than the URI of an asset may be.
    target = tmp_path.joinpath(*["x" * 200] * 8)
    asset_id = roughy.seed_asset(content=b"sound")
    ended = reader.run(RoughyDownloadOperator(task_id="download", target=target, asset_id=asset_id))
    assert (ended.state, target.read_bytes()) == ("success", b"sound"), ended.error
    assert reader.said["asset_id"] == asset_id
    if not AIRFLOW_2:
        assert reader.announced == []

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the reader is broken")

    monkeypatch.setattr(type(reader.collector), "add_input_dataset" if AIRFLOW_2 else "add_input_asset", broken)
    assert reader.run(RoughyAssetSensor(task_id="wait", asset_id=asset_id)).state == "success"


def test_lineage_creates_no_collector_without_a_reader(
    roughy: Emulator, hook: RoughyHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> None:
        raise AssertionError("a collector was made")

    monkeypatch.setattr("airflow_provider_roughy.compat.get_hook_lineage_collector", made)
    told: list[object] = []
    monkeypatch.setattr(lineage._log, "warning", lambda *args: told.append(args))
    hook.create_cut(roughy.seed_asset())
    assert told == []


limits_lineage = pytest.mark.skipif(AIRFLOW_2, reason="Airflow 2 keeps everything")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set how many assets Airflow's lineage keeps; the configuration is read when Airflow is imported."""
    module = sys.modules[get_hook_lineage_collector.__module__]
    return lambda count: monkeypatch.setattr(module, "MAX_COLLECTED_ASSETS", count)


@limits_lineage
@pytest.mark.parametrize(
    ("files", "kept"),
    [
        pytest.param([f"file:///in/{n}.mp3" for n in range(10)], None, id="as many as Airflow keeps"),
        pytest.param([f"file:///in/{n}.mp3" for n in range(11)], ["file:///in"], id="one folder"),
        pytest.param(
            [f"s3://bucket/{night}/{n}.mp3" for night in "abc" for n in range(9)],
            [f"s3://bucket/{night}" for night in "abc"],
            id="three prefixes",
        ),
        pytest.param(
            [f"s3://bucket/{n // 6}/{n}/talk.mp3" for n in range(12)],
            ["s3://bucket/0", "s3://bucket/1"],
            id="a folder for each file",
        ),
        pytest.param([f"s3://bucket/{n}.mp3" for n in range(11)], ["s3://bucket"], id="a whole bucket"),
        pytest.param([f"file:///{n}.mp3" for n in range(11)], ["file:///"], id="the root folder"),
        pytest.param([f"s3://{n}/a.mp3" for n in range(11)], [f"s3://{n}" for n in range(10)], id="many buckets"),
    ],
)
def test_more_files_than_airflow_keeps_are_reported_as_folders(
    hook: RoughyHook,
    reader: Reader,
    limit: Callable[[int], None],
    log: Callable[[], str],
    files: list[str],
    kept: list[str] | None,
) -> None:
    limit(10)
    lineage.report(hook, read=[*files, files[0]])
    assert reader.read == [Asset(uri=uri).uri for uri in kept or files]
    assert (f"Reporting {len(files)} inputs to Airflow's lineage as" in log()) == (kept is not None)


@limits_lineage
def test_more_resources_than_airflow_keeps_are_reported_as_their_project(
    hook: RoughyHook, reader: Reader, limit: Callable[[int], None], log: Callable[[], str]
) -> None:
    limit(5)
    reader.collector.add_output_asset(context=hook, uri="s3://bucket/of-another-hook")
    assets = [uri("asset", ID[:-1] + digit) for digit in "01234"]
    lineage.report(hook, written=assets[:4], project_id=ID)
    assert reader.written == ["s3://bucket/of-another-hook", *assets[:4]]
    reader._forget()
    lineage.report(hook, written=[*assets, *assets[:1], uri("asset", ID[:-1] + "5")], project_id=ID)
    assert reader.written == [uri("project", ID)]
    assert "Reporting 6 outputs to Airflow's lineage as 1 folder or project" in log()


@limits_lineage
def test_batch_reports_lineage_of_more_files_than_airflow_keeps(
    roughy: Emulator, reader: Reader, folder: Path, tmp_path: Path, limit: Callable[[int], None]
) -> None:
    roughy.progression = "immediate"
    limit(2)
    task = RoughyIngestOperator(task_id="ingest", source=str(folder), ledger=str(tmp_path / "ledger"))
    reader.run(task, ti=TaskInstance())
    assert reader.read == [f"file://{folder}"]
    assert reader.written == [uri("project", roughy.project_id)]


def test_openlineage_has_a_facet_of_a_batch_beside_its_lineage(
    roughy: Emulator, reader: Reader, folder: Path, tmp_path: Path, connection: dict[str, object]
) -> None:
    manager = pytest.importorskip("airflow.providers.openlineage.extractors.manager", exc_type=ImportError)
    serde = import_module("openlineage.client.serde").Serde
    roughy.progression = "immediate"
    add(folder, "silence.mp3", folder / "a.mp3").write_text("neither audio nor video. " * 100)
    executed: list[BaseOperator] = []

    class Ingest(RoughyIngestOperator):
        def execute(self, context: Any) -> list[str] | str:
            executed.append(self)
            return super().execute(context)

    task = Ingest(task_id="ingest", source=str(folder), ledger=str(tmp_path / "ledger"))
    assert reader.run(task, ti=TaskInstance()).state == "failed"
    state = import_module("airflow.utils.state").TaskInstanceState.FAILED
    extracted = manager.ExtractorManager().extract_metadata(SimpleNamespace(run_id="run"), executed[0], state, None)
    facet = json.loads(serde.to_json(extracted.run_facets["roughy"]))
    assert {name: facet[name] for name in ("resources", "credits", "mediaSeconds")} == {
        "resources": {"ready": 3, "rejected": 1},
        "credits": 3,
        "mediaSeconds": pytest.approx(9, abs=0.5),
    }
    assert len(facet["requestIds"]) == 1
    assert sorted(each.name for each in extracted.inputs) == [f"{folder}/{name}.mp3" for name in "abc"]
    assert {each.namespace for each in extracted.outputs} == {"roughy"}


# ---- On a real database


@pytest.mark.skipif(
    airflow.__version__.startswith(("3.0.", "3.1.", "3.2.")), reason="Airflow 3 writes events as its newest one does"
)
def test_upload_starts_another_dag(roughy: Emulator, recordings: dict[str, Path]) -> None:
    roughy.progression = "seconds=1"
    module = load(Path(shutil.copy(Path(__file__).with_name("announcing.py"), DAGS_FOLDER)))
    if AIRFLOW_2:  # Airflow 3 reads the folder by itself.
        module.dag.sync_to_db()
        module.announced.sync_to_db()
    with create_session() as session:
        # Other tests of this process have events, too.
        earlier = {event.id for event in session.query(EVENT)}
    assert Run(module.dag, {"source": str(recordings["audio"])}).state == "success"
    (asset,) = roughy.assets
    with create_session() as session:
        events = {event.uri: event.extra for event in session.query(EVENT) if event.id not in earlier}
        queued = [row.target_dag_id for row in session.query(QUEUE)]
    about = {
        "asset_id": asset["id"],
        "project_id": roughy.project_id,
        "duration_seconds": asset["duration_seconds"],
        "source": str(recordings["audio"]),
    }
    assert events == {uri("asset", asset["id"]): about, "roughy_uploads": {"state": "ready", **about}}
    assert queued == ["announced"]


# ---- URIs


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/data/talk.mp4", "file:///data/talk.mp4"),
        ("/data/../data//my talk.mp4", "file:///data/my talk.mp4"),
        ("file://conn@/data/take #1?.mp4", "file:///data/take %231%3F.mp4"),
        ("/data/Überblick.mp4", "file:///data/%C3%9Cberblick.mp4"),
        ("/data/\udcff.mp4", "file:///data/\\udcff.mp4"),
        ("s3://conn@bucket/100%/talk.mp4", "s3://bucket/100%/talk.mp4"),
        ("https://user:secret@host/talk.mp4?signature=secret", "https://host/talk.mp4"),
    ],
)
def test_location_has_the_uri_that_a_dag_would_use(location: str, expected: str) -> None:
    assert asset_uri(location) == expected
    assert Asset(uri=expected).uri == expected, "Airflow calls it something else"


@pytest.mark.parametrize("kind", ["asset", "cut", "render", "project"])
def test_airflow_accepts_the_uris_of_roughy(kind: str) -> None:
    assert Asset(uri=f"Roughy://{kind.upper()}/{ID.upper()}/").uri == lineage.resource_uri(kind, ID)
    assert lineage.create_asset(kind=kind, id=ID, extra={"a": 1}) == Asset(uri=uri(kind, ID), extra={"a": 1})


def test_openlineage_converts_the_uris_of_roughy(monkeypatch: pytest.MonkeyPatch) -> None:
    # What it would bring is a dependency of nothing here.
    event = ModuleType("openlineage.client.event_v2")
    event.Dataset = dict  # type: ignore[attr-defined]
    for name in ("openlineage", "openlineage.client"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, event.__name__, event)
    (declared,) = get_provider_info()["asset-uris"]
    module, _, name = declared["to_openlineage_converter"].rpartition(".")
    converted = getattr(import_module(module), name)(Asset(uri=uri("cut", ID)), None)
    assert converted == {"namespace": "roughy", "name": f"cut/{ID}"}


@pytest.mark.parametrize(
    "wrong",
    [
        "roughy://asset",
        "roughy://asset/1234",
        f"roughy://{ID}",
        f"roughy://assets/{ID}",
        f"roughy://asset/{ID}/cut",
        f"roughy://asset/{ID}?state=ready",
        f"roughy:/asset/{ID}",
    ],
)
def test_wrong_uri_is_reported_at_dag_parse(wrong: str) -> None:
    message = r"roughy://KIND/ID, where KIND is one of .* and ID is a UUID"
    with pytest.warns(UserWarning, match=message) if AIRFLOW_2 else pytest.raises(ValueError, match=message):
        Asset(uri=wrong)
