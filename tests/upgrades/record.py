"""Record what a release leaves in Airflow's database and in ledgers, for ``tests/test_upgrades.py`` of later ones.

Once for each release, on the newest Airflow, with the release's own code first on the path::

    PYTHONPATH=<its tree> python tests/upgrades/record.py 0.3.0

The stories are told with what a DAG file may use. So this file has to run with releases that lack what later ones have,
and imports nothing of the tests. A story that a release lacks is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

#: What stands for the folder of a story, which is another one each time.
FOLDER = "{FOLDER}"
#: Seconds, 30 years: nobody who replays a story shall be late.
LONG = 1e9
#: The time of the recordings, in nanoseconds: a part of what tells them from others.
MADE_AT = 1_770_000_000_123_456_789


@dataclass(frozen=True)
class Story:
    """A task, and what becomes of what it waits for.

    :param build: Makes the task of its options, and of the folder.
    :param ends: The states, one after the other, that end its waits: of each resource that is waited for.
        ``deleted`` if it is deleted instead, ``never`` if the time is up first. None: the task dies in its upload.
    :param seeds: What there is before it begins, by the option that takes its id.
    :param options: More options of the task.
    """

    build: Callable[[dict[str, Any], str], Any]
    ends: Sequence[Sequence[str]] = ()
    seeds: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def _provider(module: str) -> Any:
    return import_module(f"airflow_provider_roughy.{module}")


def _sensor(name: str) -> Callable[[dict[str, Any], str], Any]:
    def build(options: dict[str, Any], folder: str) -> Any:
        return getattr(_provider("sensors"), name)(
            task_id="task", **{"deferrable": True, "poke_interval": 0.05, "timeout": LONG, **options}
        )

    return build


def _operator(name: str, **always: Any) -> Callable[[dict[str, Any], str], Any]:
    def build(options: dict[str, Any], folder: str) -> Any:
        options = {"deferrable": True, "poll_interval": 0.05, "timeout": LONG, **always, **options}
        placed = {key: value.replace(FOLDER, folder) if key in _PLACES else value for key, value in options.items()}
        return getattr(_provider("operators"), name)(task_id="task", **placed)

    return build


_PLACES = ("source", "ledger")
_asset_sensor = _sensor("RoughyAssetSensor")
_upload = _operator("RoughyCreateUploadOperator", source=f"{FOLDER}/a.wav", wait_for_completion=True)
_broken_upload = _operator("RoughyCreateUploadOperator", source=f"{FOLDER}/a.wav")
_broken_upload_with_ledger = _operator(
    "RoughyCreateUploadOperator", source="memory://recordings/a.wav", ledger=f"{FOLDER}/ledger"
)
_ingest = _operator(
    "RoughyIngestOperator",
    source="memory://recordings",
    ledger=f"{FOLDER}/ledger",
    parallel=1,
    on_failed="return",
    on_pending_payment="return",
)
_cut = _operator("RoughyCutOperator")
_render = _operator("RoughyRenderOperator", output={"format": "mp3"}, cancel_on_kill=True)
_asset = {"asset_id": "asset"}

STORIES: dict[str, Story] = {
    **{f"asset sensor, {end}": Story(_asset_sensor, [[end]], _asset) for end in ("ready", "failed", "deleted")},
    "asset sensor, never": Story(_asset_sensor, [["never"]], _asset, {"timeout": 0.3}),
    **{
        f"asset sensor, pending_payment, {policy}": Story(
            _asset_sensor, [["pending_payment"]], _asset, {"on_pending_payment": policy}
        )
        for policy in ("fail", "skip", "return")
    },
    "asset sensor, waits for the payment": Story(_asset_sensor, [["ready"]], _asset, {"on_pending_payment": "wait"}),
    **{f"upload, {end}": Story(_upload, [[end]]) for end in ("ready", "failed", "pending_payment", "deleted")},
    "upload, never": Story(_upload, [["never"]], options={"timeout": 0.3}),
    "upload, broken off": Story(_broken_upload),
    "upload with a ledger, broken off": Story(_broken_upload_with_ledger),
    "batch": Story(_ingest, [["ready", "failed", "pending_payment"]]),
    "batch, broken off": Story(_ingest),
    **{f"cut, {end}": Story(_cut, [["ready"], [end]], _asset) for end in ("completed", "failed")},
    **{f"render, {end}": Story(_render, [["ready"], [end]], _asset) for end in ("completed", "failed")},
    "render, never": Story(_render, [["never"]], {"asset_id": "ready asset"}, {"timeout": 0.3}),
    **{
        f"{kind} sensor, {end}": Story(_sensor(f"Roughy{kind.capitalize()}Sensor"), [[end]], {f"{kind}_id": kind})
        for kind in ("cut", "render")
        for end in ("completed", "failed")
    },
}


class TaskInstance:
    """The little of a task instance that the tasks ask for; what it keeps is JSON, as in Airflow."""

    dag_id, task_id, map_index, try_number, max_tries = "dag", "task", -1, 1, 0

    def __init__(self, run_id: str = "run", xcoms: Mapping[str, Any] | None = None) -> None:
        self.run_id = run_id
        self.started = datetime.now(UTC)
        self.xcoms: dict[str, Any] = dict(xcoms or {})

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        return deepcopy(self.xcoms.get(key))

    def get_first_reschedule_date(self, context: Any) -> datetime:
        return self.started


class Store:
    """The task state store."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.values: dict[str, Any] = dict(values or {})

    def get(self, key: str, default: Any = None) -> Any:
        return deepcopy(self.values.get(key, default))

    def set(self, key: str, value: Any, **_: Any) -> None:
        self.values[key] = json.loads(json.dumps(value))


def write_recordings(folder: Path) -> None:
    """Write the recordings of the stories, the same ones each time: to the folder, and three to ``memory://``."""
    from fsspec import AbstractFileSystem
    from fsspec.implementations.memory import MemoryFileSystem

    class Storage(MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped.
        """Tells versions apart by ETags, as S3 does, rather than by the time of writing."""

        def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
            return {**super().info(path, **kwargs), "ETag": f"of {Path(path).name}"}

        def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
            found = super().ls(path, detail=detail, **kwargs)
            return [{**each, "ETag": f"of {Path(each['name']).name}"} for each in found] if detail else found

        def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any) -> Any:
            return AbstractFileSystem.find(self, path, maxdepth=maxdepth, withdirs=withdirs, **kwargs)

    file = folder / "a.wav"
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 1, 8000, 0, "NONE", ""))
        out.writeframes(bytes(range(256)) * 100)
    os.utime(file, ns=(MADE_AT, MADE_AT))
    memory = Storage()
    memory.store.clear()
    for name in "abc":
        memory.pipe(f"/recordings/{name}.wav", file.read_bytes())
    # Airflow keeps what was attached first, whatever is said later.
    import_module("airflow.sdk.io").attach("memory").fs = memory


def files_in(folder: Path) -> dict[str, str]:
    """Return what is in a folder, but the recordings."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".wav"
    }


def outcome(step: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Run a part of a task.

    :returns: How it ended, and what it waits for now if it did not.
    """
    from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException, TaskDeferred

    try:
        return {"result": step()}, None
    except TaskDeferred as deferred:
        return {"waits": True}, deferred
    except AirflowSkipException:
        return {"skipped": True}, None
    except Exception as error:
        final = isinstance(error, (AirflowFailException, AirflowSensorTimeout))
        return {"error": type(error).__name__, "retried": not final}, None


def first_event(class_path: str, kwargs: dict[str, Any]) -> Any:
    """Make a trigger as Airflow does, and wait for what it has to say."""
    module, _, name = class_path.rpartition(".")

    async def wait() -> Any:
        async for event in getattr(import_module(module), name)(**kwargs).run():
            return json.loads(json.dumps(event.payload))

    return asyncio.run(wait())


@contextmanager
def connected() -> Iterator[Any]:
    """Give a Roughy in which nothing happens by itself, as Airflow's connection ``roughy_default``."""
    with _provider("emulator").Emulator(progression="manual", balance=1000) as roughy:
        os.environ["AIRFLOW_CONN_ROUGHY_DEFAULT"] = json.dumps(roughy.airflow_connection)
        yield roughy


def _seed(roughy: Any, what: str) -> str:
    if what == "ready asset":
        return str(roughy.seed_asset("ready"))
    return str(getattr(roughy, f"seed_{what}")("processing"))


def tell(story: Story) -> list[dict[str, Any]]:
    """Let a story happen, and return a row for each part of it that an upgrade may come into the middle of."""
    rows: list[dict[str, Any]] = []
    with connected() as roughy, tempfile.TemporaryDirectory() as name, _provider("hooks").RoughyHook() as hook:
        folder = Path(name)
        write_recordings(folder)
        options = {**story.options, **{option: _seed(roughy, what) for option, what in story.seeds.items()}}
        ti, store = TaskInstance(), Store()
        context: Any = {"ti": ti, "task_state_store": store}
        if not story.ends:
            fault = _provider("emulator").Fault
            roughy.inject(fault(method="PATCH", cut_after=5000))
            roughy.inject(fault(method="PATCH", nth=2, status=503, headers={"Retry-After": "86400"}, times=None))
        begun = story.build(options, name)
        ended, waiting = outcome(lambda: begun.execute(context))
        for ends in story.ends:
            if waiting is None:
                raise RuntimeError(f"It should wait: {ended}")
            class_path, kwargs = waiting.trigger.serialize()
            kind = kwargs.get("kind") or next(kind for kind in ("render", "asset") if f"{kind}_id" in kwargs)
            ids = kwargs.get("ids") or [kwargs.get("id") or kwargs[f"{kind}_id"]]
            left = {"task_state": dict(store.values), "xcoms": dict(ti.xcoms), "files": files_in(folder)}
            for id, end in zip(ids, ends, strict=True):
                if end == "deleted":
                    hook.delete_asset(id)
                elif end != "never":
                    roughy.set_state(id, end)
            event = first_event(class_path, json.loads(json.dumps(kwargs)))
            method, extra = waiting.method_name, {**(waiting.kwargs or {}), "event": event}
            states = [event["state"] if end == "never" else end for end in ends]
            rows.append(
                {
                    "options": options,
                    "resources": [{"id": id, "kind": kind, "state": is_} for id, is_ in zip(ids, states, strict=True)],
                    "left": left,
                    "trigger": [class_path, kwargs],
                    "method": method,
                    "kwargs": extra,
                }
            )
            task = story.build(options, name)
            ended, waiting = outcome(lambda: task.resume_execution(method, extra, context))  # noqa: B023 - called at once
            rows[-1] |= {"ended": ended, "files_then": files_in(folder)}
        if not story.ends:
            left = {"task_state": dict(store.values), "xcoms": {}, "files": files_in(folder)}
            ids = [asset["id"] for asset in roughy.assets]
            resources = [{"id": id, "kind": "asset", "state": "pending_upload"} for id in ids]
            rows.append({"options": options, "resources": resources, "left": left, "ended": ended})
        return [json.loads(json.dumps(row).replace(name, FOLDER)) for row in rows]


def watch() -> dict[str, Any]:
    """Let a watcher begin and announce an asset, and a task take it."""
    with connected() as roughy, tempfile.TemporaryDirectory() as name:
        ledger = Path(name) / "ledger"
        waiting = roughy.seed_asset("processing")
        trigger = _provider("triggers").RoughyAssetsReadyTrigger(ledger=str(ledger), poll_interval=0.1)
        class_path, kwargs = trigger.serialize()

        async def announce() -> Any:
            events = _provider("triggers").RoughyAssetsReadyTrigger(**kwargs).run()
            first = asyncio.ensure_future(anext(events))
            while not list(ledger.glob("note-*.json")):  # noqa: ASYNC110 - the emulator's loop is another
                await asyncio.sleep(0.05)
            roughy.set_state(waiting, "ready")
            event = await first
            await events.aclose()
            return event.payload

        payload = json.loads(json.dumps(asyncio.run(announce())))
        events = {"asset": [type("AssetEvent", (), {"extra": {"from_trigger": True, "payload": payload}})]}
        context: Any = {"ti": TaskInstance(), "triggering_asset_events": events}
        taken = _provider("events").take_assets(context, ledger=str(ledger))
        row = {
            "base_url": roughy.url,
            "trigger": [class_path, kwargs],
            "payload": payload,
            "taken": taken,
            "files": files_in(Path(name)),
        }
        return dict(json.loads(json.dumps(row).replace(name, FOLDER)))


def main(release: str) -> dict[str, Any]:
    """Record all that a release has."""
    from airflow import __version__ as airflow

    stories = {}
    for name, story in STORIES.items():
        try:
            stories[name] = tell(story)
        except (AttributeError, TypeError) as error:
            # Not in this release: an operator, an option or a kind of resource.
            print(f"{name}: left out, {error}", file=sys.stderr)
    found: dict[str, Any] = {"release": release, "airflow": airflow, "stories": stories}
    if hasattr(_provider("triggers"), "RoughyAssetsReadyTrigger"):
        found["watch"] = watch()
    return found


if __name__ == "__main__":
    _release = sys.argv[1]
    _rows = json.dumps(main(_release), sort_keys=True)
    # One line per row.
    _rows = _rows.replace('{"ended"', '\n{"ended"').replace('], "', '],\n"')
    Path(__file__).with_name(f"{_release}.json").write_text(_rows + "\n")
