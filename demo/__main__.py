"""The example DAGs on a real Airflow, with the emulator on this machine: ``make demo``.

Five DAGs of ``example_dags/`` run one after another. One of them runs on two nights, and an event starts one. The demo
prints each change of a task or an asset. The table :func:`stories` says what is expected of each run. The demo then
checks all of it in Airflow's REST API and in the records of the emulator. The exit status is 0 only if all checks hold.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import av
import httpx

from airflow_provider_roughy.emulator import Emulator, Request
from harness.airflow import LocalAirflow

HERE = Path(__file__).parent
MEDIA = HERE / "media"
EXAMPLE_DAGS = HERE.parent / "example_dags"

#: The signals that end the demo in good order.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds without any change after which a story fails; one more for each so many bytes.
STALLED = 120
BYTES_PER_SECOND = 5_000_000
#: Seconds between "this task waits in the triggerer" and the event it waits for, so that its trigger has polled once.
PATIENCE = 2

SETTINGS = {
    # Runs start only when the demo triggers them, not by schedules, nor by assets that become ready before their story.
    "SCHEDULER__USE_JOB_SCHEDULE": "False",
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
}

# The expected states of an asset.
READY = "pending_upload > processing > ready"
FAILED = "pending_upload > processing > failed"
REJECTED = "pending_upload > rejected"
UNPAID_THEN_READY = "pending_upload > processing > pending_payment > ready"

#: The task states that are printed; the others are transitional.
PRINTED_STATES = frozenset(
    {"running", "deferred", "success", "failed", "skipped", "upstream_failed", "up_for_retry", "up_for_reschedule"}
)


@dataclass(frozen=True)
class Wait:
    """A wait in the triggerer.

    :param asset_id: The asset; ``None`` for all assets of the run.
    :param seconds: Its duration.
    """

    asset_id: str | None
    seconds: float


@dataclass
class Story:
    """One run of a DAG: its expected result, then its actual result.

    :param title: What it demonstrates.
    :param dag_id: The DAG.
    :param conf: The run's configuration.
    :param files: The expected states of each file's asset.
    :param tasks: The expected state of each task instance; ``deferred > success`` if it waits in the
        triggerer before.
    :param facts: More conditions that must be true, each with its check.
    :param on_waiting: Called each time that all instances of a task wait in the triggerer.
    :param balance: Credits of the account.
    :param prepare: Called before the run.
    :param begin: Causes the event that starts the DAG; by default, the demo triggers the DAG.
    """

    title: str
    dag_id: str
    conf: Mapping[str, object]
    files: Mapping[Path, str]
    tasks: Mapping[str, str]
    facts: Mapping[str, Callable[[Story], bool]]
    on_waiting: Mapping[str, Callable[[], None]]
    balance: int
    prepare: Callable[[], None] = lambda: None
    begin: Callable[[], None] | None = None

    run_id: str = ""
    run_state: str = ""
    states: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    waited: set[str] = field(default_factory=set)
    waits: list[Wait] = field(default_factory=list)
    #: What each task returned, and the other XComs of the batch.
    xcoms: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    assets: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)


def stories(
    folder: Path, own_file: Path | None, airflow: LocalAirflow, roughy: Emulator, console: Console
) -> list[Story]:
    """Return the runs with their expected results.

    :param folder: A folder for files.
    :param own_file: The user's own recording, if any.
    :param airflow: Receives webhooks.
    :param roughy: Controlled while tasks wait.
    :param console: Prints what is controlled.
    """
    recording = own_file or MEDIA / "interview.mp3"
    batch = make_batch(folder / "recordings")
    new = folder / "recordings" / "new.mp3"
    night = {"folder": str(folder / "recordings"), "ledger": str(folder / "ledger")}
    long = make_silence(folder / "long-interview.wav", seconds=100)
    video, rough_cut = folder / "studio" / "statement.mp4", folder / "rough-cuts" / "statement.mp4"
    video.parent.mkdir()
    shutil.copy(MEDIA / video.name, video)
    of_others = MEDIA / "interview.mp3"

    def finish() -> None:
        console.event("Roughy", "", "finishes what it is processing")
        roughy.settle()

    def add_one() -> None:
        console.event("You", "", f"put {new.name} into the folder")
        shutil.copy(MEDIA / "interview.mp3", new)

    def top_up() -> None:
        console.event("You", "", "top up 5 credits")
        roughy.top_up(5)

    def let_dags_start() -> None:
        # The other DAGs are paused by now.
        airflow.restart("scheduler", settings={"SCHEDULER__USE_JOB_SCHEDULE": "True"})

    def upload_as_others() -> None:
        console.event("Somebody", "", "uploads a recording without Airflow; Roughy sends a webhook when it is ready")
        upload(of_others, roughy, webhooks=f"{airflow.url}/roughy/webhooks")
        roughy.settle()

    return [
        Story(
            title="One recording: upload it, wait without a worker, use it, delete it",
            dag_id="roughy_ingest_one",
            conf={"source": str(recording)},
            balance=100_000 if own_file else 10,
            files={recording: READY},
            tasks={
                "upload": "success",
                "wait_until_ready": "deferred > success",
                "use": "success",
                "delete": "success",
            },
            facts={
                "the sensor returned the asset as ready": lambda s: s.xcoms["wait_until_ready"]["state"] == "ready",
                "the next task got the asset": lambda s: str(recording.stat().st_size) in s.xcoms["use"],
                "the teardown deleted it": lambda s: s.xcoms["delete"]["deleted"] is True,
                "Roughy has no asset left": lambda s: not roughy.assets,
            },
            on_waiting={"wait_until_ready": finish},
        ),
        Story(
            title="A night: two good recordings, a damaged one and a text file, in one task",
            dag_id="roughy_nightly_batch",
            conf=night,
            balance=10,
            files=batch,
            tasks={
                "ingest": "deferred > success",
                "go_on[0]": "success",
                "go_on[1]": "success",
                "notify_unpaid": "skipped",
                "notify_failed": "success",
            },
            facts={
                "no retries were used": lambda s: {task["try_number"] for task in s.details.values()} <= {0, 1},
                "the rejected file left no asset": lambda s: len(roughy.assets) == 3,
                "only the good files were charged": lambda s: roughy.balance == s.balance - 2,
                "the notification names the other two": lambda s: len(s.xcoms["notify_failed"].splitlines()) == 2,
            },
            on_waiting={"ingest": finish},
        ),
        Story(
            title="The next night: the same folder and one new recording; only the new one is uploaded and charged",
            dag_id="roughy_nightly_batch",
            conf=night,
            balance=10,
            prepare=add_one,
            files={new: READY},
            tasks={
                "ingest": "deferred > success",
                "go_on[0]": "success",
                "notify_unpaid": "skipped",
                "notify_failed": "skipped",
            },
            facts={
                "four files are already ingested": lambda s: sum(s.outputs["already_ingested"].values()) == len(batch),
                "one was uploaded": lambda s: [request.method for request in s.requests].count("PATCH") == 1,
                "one was charged": lambda s: roughy.balance == s.balance - 1,
            },
            on_waiting={"ingest": finish},
        ),
        Story(
            title="A recording that the credits do not cover: ask for a top-up, wait for it, continue",
            dag_id="roughy_branch_on_payment",
            conf={"source": str(long)},
            balance=1,
            files={long: UNPAID_THEN_READY},
            tasks={
                "upload": "success",
                "wait_until_settled": "deferred > success",
                "paid": "success",
                "ask_for_top_up": "success",
                "wait_for_top_up": "deferred > success",
                "go_on": "success",
            },
            facts={
                "the first sensor returned pending_payment": (
                    lambda s: s.xcoms["wait_until_settled"]["state"] == "pending_payment"
                ),
                "the second sensor returned ready": lambda s: s.xcoms["wait_for_top_up"]["state"] == "ready",
                "the next task got the asset": lambda s: s.xcoms["go_on"] == s.xcoms["upload"],
                "two minutes were charged": lambda s: roughy.balance == s.balance + 5 - 2,
            },
            on_waiting={"wait_until_settled": finish, "wait_for_top_up": top_up},
        ),
        Story(
            title="From a recording to a rough cut: captions, a timeline for the editor, a rendered video",
            dag_id="roughy_rough_cut",
            conf={
                "source": str(video.parent),
                "target": str(rough_cut.parent),
                "ledger": str(folder / "studio-ledger"),
            },
            balance=10,
            files={video: READY},
            tasks={
                "ingest": "deferred > success",
                # Once for the cut, and once for the render.
                "produce": "deferred > deferred > success",
            },
            facts={
                "captions, timeline and video are in the target": lambda s: (
                    {file.name for file in rough_cut.iterdir()}
                    == {"captions.srt", "captions.vtt", "timeline.fcpxml", "render.mp4"}
                ),
                "the video has picture and sound, and is no longer than the recording": lambda s: (
                    print_media(video, console)[1]
                    == print_media(rough_cut / "render.mp4", console)[1]
                    == {"audio", "video"}
                    and measured(rough_cut / "render.mp4")[0] <= measured(video)[0] + 0.05
                ),
            },
            on_waiting={"ingest": finish, "produce": finish},
        ),
        Story(
            title="A recording that somebody else uploads: a webhook starts a DAG, which cuts it and writes captions",
            dag_id="roughy_react_to_media",
            conf={},
            balance=10,
            prepare=let_dags_start,
            begin=upload_as_others,
            files={of_others: READY},
            tasks={"take": "success", "caption.cut[0]": "deferred > success", "caption.captions[0]": "success"},
            facts={
                "the webhook was accepted": lambda s: (
                    [sent["state"] for sent in roughy.webhook_deliveries] == ["delivered"]
                ),
                "the captions are written": lambda s: captions_in(folder / "captions") == s.xcoms["take"],
            },
            on_waiting={"caption.cut": finish},
        ),
    ]


def upload(path: Path, roughy: Emulator, *, webhooks: str) -> None:
    """Upload a recording without Airflow, and subscribe a webhook to its end.

    :param path: The recording.
    :param roughy: The emulator.
    :param webhooks: The URL that receives webhooks.
    """
    key = {"Authorization": f"Bearer {roughy.api_key}"}
    with httpx.Client(base_url=roughy.url, headers=key, trust_env=False) as api:
        endpoint = {"url": webhooks, "event_types": ["asset.ready"]}
        api.post("/v1/webhook-endpoints", json=endpoint).raise_for_status()
        new = {"project_id": roughy.project_id, "size_bytes": path.stat().st_size}
        upload_url = api.post("/v1/assets", json=new).raise_for_status().headers["Location"]
        tus = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        api.patch(upload_url, content=path.read_bytes(), headers=tus).raise_for_status()


def captions_in(folder: Path) -> list[str]:
    """Return the assets with caption files."""
    return [file.stem for file in folder.glob("*.srt") if " --> " in file.read_text()]


def new_secret() -> str:
    """Generate a signing secret."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


# Generated files


def make_batch(folder: Path) -> dict[Path, str]:
    """Fill a folder with the recordings of a day, and return the expected result of each."""
    folder.mkdir()
    recordings = {
        folder / "damaged.mp3": FAILED,
        folder / "lecture.m4a": READY,
        folder / "notes.mp3": REJECTED,
        folder / "statement.mp4": READY,
    }
    damaged, lecture, notes, statement = recordings
    # It starts like a recording, so that its first chunk is accepted; the rest is noise.
    damaged.write_bytes((MEDIA / "interview.mp3").read_bytes()[:64] + random.Random(1).randbytes(20_000))
    notes.write_text("Notes of the interview, saved under the wrong name.\n" * 100)
    for path in (lecture, statement):
        shutil.copy(MEDIA / path.name, path)
    return recordings


def measured(path: Path) -> tuple[float, set[str], str]:
    """Read a media file; return its seconds, the types of its streams, and a description of them."""
    with av.open(str(path)) as container:
        streams = [
            f"{stream.codec_context.name} {stream.codec_context.width}x{stream.codec_context.height}"
            if isinstance(stream, av.VideoStream)
            else stream.codec_context.name
            for stream in container.streams
        ]
        seconds = (container.duration or 0) / av.time_base
        return seconds, {stream.type for stream in container.streams}, ", ".join(streams)


def print_media(path: Path, console: Console) -> tuple[float, set[str], str]:
    """Print what is in a media file, and return it."""
    found = seconds, _, streams = measured(path)
    console.line(f"  {path.name:<20} {path.stat().st_size:>12,} bytes  {seconds:.2f} s of {streams}")
    return found


def make_silence(path: Path, seconds: int) -> Path:
    """Write a WAV of 8 bits at 8 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(b"\x80" * seconds * 8000)
    return path


# Output


class Console:
    """Prints to the terminal, in colour if it supports it."""

    COLOURS: Mapping[str, str] = {
        "success": "32",
        "ready": "32",
        "failed": "31",
        "rejected": "31",
        "upstream_failed": "31",
        "up_for_retry": "31",
        "pending_payment": "33",
        "deferred": "36",
        "skipped": "90",
    }

    def __init__(self) -> None:
        self._colours = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ

    def paint(self, text: str, code: str) -> str:
        """Colour a text.

        :param text: The text.
        :param code: The ANSI SGR code.
        """
        return f"\033[{code}m{text}\033[0m" if self._colours else text

    def line(self, text: str = "") -> None:
        """Print one line."""
        print(text, flush=True)

    def title(self, text: str) -> None:
        """Print the title of a section."""
        self.line(f"\n{self.paint(text, '1')}")

    def event(self, who: str, state: str, more: str = "") -> None:
        """Print an event.

        :param who: The task, or who else acts.
        :param state: Its new state, if it has one.
        :param more: Further details.
        """
        now = self.paint(f"{datetime.now():%H:%M:%S}", "90")
        painted = self.paint(f"{state:<16}", self.COLOURS.get(state, "0")) if state else ""
        self.line(f"  {now}  {who:<20} {painted}{more}".rstrip())


def clock(timestamp: str) -> str:
    """Return the local time of day of an ISO 8601 timestamp."""
    return f"{datetime.fromisoformat(timestamp.replace('Z', '+00:00')).astimezone():%H:%M:%S}"


def short(asset_id: str) -> str:
    """Abbreviate an asset id to its last digits, which differ between assets; the first ones are the time."""
    return f"…{asset_id[-8:]}"


# Following a run


class Watcher:
    """Runs a story and prints each change of its tasks and assets.

    :param story: Its actual result is stored here.
    :param airflow: The Airflow that runs it.
    :param roughy: The emulator.
    :param console: Prints events.
    """

    def __init__(self, story: Story, airflow: LocalAirflow, roughy: Emulator, console: Console) -> None:
        self._story = story
        self._airflow = airflow
        self._roughy = roughy
        self._console = console
        self._changed_at = time.monotonic()
        self._stalled_after = STALLED + sum(path.stat().st_size for path in story.files) / BYTES_PER_SECOND
        self._waiting_since: dict[str, float] = {}
        self._pending = dict(story.on_waiting)
        self._answered = -1
        self._earlier = {asset["id"] for asset in roughy.assets}

    def run(self) -> None:
        """Start the DAG and follow the run to its end."""
        story = self._story
        self._roughy.clear_requests()
        self._roughy.balance = story.balance
        if story.begin is None:
            story.run_id = self._airflow.trigger_dag(story.dag_id, conf=story.conf)
            self._airflow.pause(story.dag_id, paused=False)
        else:
            self._airflow.pause(story.dag_id, paused=False)
            story.begin()
            story.run_id = self._airflow.wait_for_a_run(story.dag_id)
        try:
            self._watch()
        finally:
            story.requests = self._roughy.requests
            self._read_xcoms()
            self._airflow.pause(story.dag_id)

    def _watch(self) -> None:
        story = self._story
        while not story.run_state:
            # The run's state is read first: after it has ended, its tasks do not change any more.
            state = self._airflow.run_state(story.dag_id, story.run_id)
            self._check_tasks()
            self._check_assets()
            self._act()
            if state in ("success", "failed"):
                story.run_state = state
            elif time.monotonic() - self._changed_at > self._stalled_after:
                raise TimeoutError(f"{story.dag_id}: nothing has changed for {self._stalled_after:.0f} s")
            else:
                time.sleep(0.25)

    def _check_tasks(self) -> None:
        story = self._story
        tasks = self._airflow.task_instances(story.dag_id, story.run_id)
        story.details = {_name(task): task for task in tasks}
        for name, task in story.details.items():
            seen = story.states.setdefault(name, [])
            state = task["state"]
            if state == "deferred":
                self._check_wait(name, task)
            elif name in self._waiting_since:
                began = self._waiting_since.pop(name)
                task_id = name.partition("[")[0]
                # It may wait again.
                self._pending |= {key: act for key, act in story.on_waiting.items() if key == task_id}
                story.waits.append(Wait(task["rendered_fields"].get("asset_id"), time.monotonic() - began))
            if state in PRINTED_STATES and state not in seen[-1:]:
                seen.append(state)
                self._changed_at = time.monotonic()
                if state != "deferred":
                    self._console.event(name, state)

    def _check_wait(self, name: str, task: dict[str, Any]) -> None:
        trigger = task["trigger"]
        if name in self._waiting_since or not (trigger and trigger["triggerer_id"] and task["triggerer_job"]):
            return
        if task["pid"] in self._airflow.pids("scheduler"):
            return  # The worker process that deferred it has not ended yet.
        self._waiting_since[name] = self._changed_at = time.monotonic()
        self._story.waited.add(name)
        kind = trigger["classpath"].rpartition(".")[2]
        more = f"waits in the triggerer as {kind} {trigger['id']}; its worker process is gone"
        self._console.event(name, "deferred", more)

    def _check_assets(self) -> None:
        # The emulator hashes stored bytes for each read, so assets are read only after a request.
        answered = sum(1 for request in self._roughy.requests if request.status is not None)
        if answered == self._answered:
            return
        self._answered = answered
        story = self._story
        for asset in self._roughy.assets:
            if asset["id"] in self._earlier:
                continue
            known = story.assets.get(asset["id"], {"states": []})
            for state, at in asset["states"][len(known["states"]) :]:
                self._changed_at = time.monotonic()
                self._console.event(f"asset {short(asset['id'])}", state, f"since {clock(at)}")
            story.assets[asset["id"]] = asset

    def _act(self) -> None:
        for task_id, action in list(self._pending.items()):
            instances = {name for name in self._story.tasks if name.partition("[")[0] == task_id}
            if not instances <= self._waiting_since.keys():
                continue
            if time.monotonic() - max(self._waiting_since[name] for name in instances) >= PATIENCE:
                del self._pending[task_id]
                action()
                self._answered = -1

    def _read_xcoms(self) -> None:
        story = self._story
        for name, task in story.details.items():
            path = f"/dags/{story.dag_id}/dagRuns/{story.run_id}/taskInstances/{task['task_id']}/xcomEntries"
            entries = self._airflow.request("GET", path, params={"map_index": task["map_index"]}).json()["xcom_entries"]
            for key in (entry["key"] for entry in entries):
                value = self._airflow.xcom(story.dag_id, story.run_id, task["task_id"], task["map_index"], key)
                if key == "return_value":
                    story.xcoms[name] = value
                elif name == "ingest":
                    story.outputs[key] = value


def _name(task: Mapping[str, Any]) -> str:
    return str(task["task_id"]) if task["map_index"] < 0 else f"{task['task_id']}[{task['map_index']}]"


# Checking


def checks(story: Story) -> Iterator[tuple[str, bool]]:
    """Compare the actual result with the expected one.

    :return: Pairs of a description with both results, and whether they agree.
    """
    yield f"the run is {story.run_state or 'unfinished'}, expected success", story.run_state == "success"
    yield f"the tasks are {', '.join(story.details)}", story.details.keys() == story.tasks.keys()
    for name, expected in story.tasks.items():
        seen = " > ".join(story.states.get(name, [])) or "never seen"
        yield f"{name}: {seen}, expected {expected}", seen.endswith(expected.rpartition(" > ")[2])
        waits = expected.startswith("deferred")
        yield f"{name}: waited in the triggerer: {name in story.waited}", waits == (name in story.waited)
    for path, expected in story.files.items():
        yield f"{path.name}: {states_of(story, path)}, expected {expected}", states_of(story, path) == expected
        if expected != REJECTED:
            yield f"{path.name}: the bytes stored are those of the file", is_whole(story, path)
    created = sum(request.method == "POST" and request.path == "/v1/assets" for request in story.requests)
    yield f"{created} assets were created for {len(story.files)} files", created == len(story.files)
    rejected = sum(request.method == "PATCH" and request.status == 409 for request in story.requests)
    expected_rejections = list(story.files.values()).count(REJECTED)
    yield f"{rejected} uploads were rejected, expected {expected_rejections}", rejected == expected_rejections
    for text, is_true in story.facts.items():
        try:
            yield text, is_true(story)
        except (KeyError, TypeError) as error:
            yield f"{text} (missing: {error})", False


def asset_of(story: Story, path: Path) -> dict[str, Any] | None:
    """Find the asset of a file by the XComs of a task; ``None`` if there is none."""
    files = {source: asset_id for asset_id, source in story.outputs.get("sources", {}).items()}
    taken = story.xcoms.get("take") or [""]
    return story.assets.get(files.get(str(path)) or story.xcoms.get("upload", taken[0]))


def states_of(story: Story, path: Path) -> str:
    """Return the states that the asset of a file has been in."""
    asset = asset_of(story, path)
    return " > ".join(state for state, _ in asset["states"]) if asset else REJECTED


def is_whole(story: Story, path: Path) -> bool:
    """Return whether Roughy stored exactly a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    asset = asset_of(story, path)
    return asset is not None and asset["sha256"] == digest.hexdigest()


# Reporting


def print_files(story: Story, console: Console) -> None:
    """Print the result of each file of a story."""
    for path in story.files:
        asset = asset_of(story, path)
        waits = " and ".join(f"{w.seconds:.0f} s" for w in story.waits if asset and w.asset_id in (None, asset["id"]))
        outcome = asset["state"] if asset else "rejected"
        console.line(
            f"  {path.name:<20} {path.stat().st_size:>12,} bytes  {asset['id'] if asset else '-':<36}  "
            f"{console.paint(f'{outcome:<8}', console.COLOURS.get(outcome, '0'))} "
            f"{f'waited {waits} in the triggerer' if waits else 'no wait'}"
        )
        if asset:
            console.line("      " + " > ".join(f"{state} {clock(at)}" for state, at in asset["states"]))
        else:
            console.line("      rejected at its first chunk: neither audio nor video; its asset was removed")


def print_logs(story: Story, airflow: LocalAirflow, console: Console) -> None:
    """Print the parts of the logs of a story's tasks and of Airflow's components that may explain a failure."""
    for name, task in story.details.items():
        if not task["try_number"] or task["state"] == story.tasks.get(name, "").rpartition(" > ")[2]:
            continue
        console.title(f"Log of {story.dag_id} {name}, try {task['try_number']}: {task['state']}")
        log = airflow.task_log(story.dag_id, story.run_id, task["task_id"], task["try_number"], task["map_index"])
        for line in tail(log):
            console.line(f"  {log_line(json.loads(line))}")
    for component in ("scheduler", "triggerer"):
        console.title(f"End of the {component}'s output")
        for line in tail(airflow.output(component).read_text(errors="replace")):
            console.line(f"  {line[:240]}")


def tail(text: str, count: int = 15) -> list[str]:
    """Return the last lines of a log, without the markers of groups."""
    return [line for line in text.splitlines() if "::group::" not in line and "::endgroup::" not in line][-count:]


def log_line(entry: Mapping[str, Any]) -> str:
    """Format an entry of a task's log as a line."""
    causes = [f"{error['exc_type']}: {error['exc_value']}" for error in entry.get("error_detail") or []]
    return " ".join([f"{entry.get('level') or '':<8}", entry["event"], *causes])


# Running


def run(own_file: Path | None, keep: bool, console: Console) -> bool:
    """Run all stories, and clean up.

    :param own_file: The user's own recording, if any.
    :param keep: Whether to keep running until interrupted.
    :return: Whether all checks hold.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roughy-demo-")))
        # Roughy finishes its work only on `settle`, after the wait was observed, so that no machine is too slow.
        roughy = stack.enter_context(Emulator(progression="manual", webhook_secret=new_secret()))
        console.line(f"Emulator of Roughy at {roughy.url}")
        console.line(
            f"Airflow {version('apache-airflow')}: scheduler, triggerer, DAG processor and API server are starting"
        )
        airflow = LocalAirflow(
            [EXAMPLE_DAGS],
            connections={"roughy_default": roughy.airflow_connection},
            settings=SETTINGS,
            environment={"ROUGHY_TAKEN": str(folder / "taken"), "ROUGHY_CAPTIONS": str(folder / "captions")},
        )
        stack.enter_context(airflow)
        # Callbacks run in reverse order: signals are ignored before the cleanup starts.
        stack.callback(_ignore_signals)
        console.line(f"Airflow at {airflow.url}, after {time.monotonic() - began:.0f} s")

        all_stories = stories(folder, own_file, airflow, roughy, console)
        # Stop after the first story that fails.
        good = all(run_story(story, airflow, roughy, console) for story in all_stories)
        console.title("Outcome of each file")
        for story in (story for story in all_stories if story.run_id):
            print_files(story, console)
        console.line()
        verdict = (
            console.paint("All checks hold", "32") if good else console.paint("Some checks FAILED, see above", "31")
        )
        console.line(f"{verdict}, after {time.monotonic() - began:.0f} s")
        if keep:
            stay(airflow, roughy, console)
    return good


def run_story(story: Story, airflow: LocalAirflow, roughy: Emulator, console: Console) -> bool:
    """Run one story, and check it.

    :return: Whether all checks hold.
    """
    console.title(f"{story.title} ({story.dag_id})")
    console.event("Roughy", "", f"has {story.balance:,} credit{'s' if story.balance != 1 else ''} on the account")
    story.prepare()
    try:
        Watcher(story, airflow, roughy, console).run()
    except (TimeoutError, RuntimeError, httpx.HTTPError) as error:
        console.event("the demo", "failed", str(error))
    results = list(checks(story))
    missed = [text for text, is_so in results if not is_so]
    console.line(f"  {len(results) - len(missed)} of {len(results)} checks hold")
    for text in missed:
        console.line(f"  {console.paint('FAILED', '31')} {text}")
    if missed:
        print_logs(story, airflow, console)
    return not missed


def stay(airflow: LocalAirflow, roughy: Emulator, console: Console) -> None:
    """Keep everything running until Ctrl-C."""
    roughy.progression = "seconds=5"
    console.title("Still running, until Ctrl-C")
    console.line(f"  Airflow  {airflow.url} (no login: every user of this machine is an administrator)")
    console.line(f"           home {airflow.home}")
    console.line(f"  Roughy   {roughy.url} (key {roughy.api_key}; control it at {roughy.url}/_emulator/)")
    console.line('  Try      trigger roughy_ingest_one with {"source": "/path/of/a/recording"}')
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(60)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    :param arguments: The arguments of the command line.
    :return: The exit status: 0 if all checks hold.
    """
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Run the example DAGs on a real Airflow and the emulator."
    )
    parser.add_argument("file", nargs="?", type=Path, help="your own recording, for the first DAG")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    options = parser.parse_args(arguments)
    if options.file is not None and not options.file.is_file():
        parser.error(f"{options.file} is not a file")
    for number in ENDING:
        signal.signal(number, _interrupt)
    console = Console()
    try:
        good = run(options.file and options.file.resolve(), options.keep, console)
    except KeyboardInterrupt:
        console.line("\nInterrupted; everything was stopped and removed")
        return 130
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
