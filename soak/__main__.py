"""Nightly batches under faults and kills, on a real Airflow: ``make soak MINUTES=60``.

The soak starts with a batch of recordings and adds more all the time. Runs of ``soak/dags`` ingest them, cut and render
the videos, and a watcher takes the assets that become ready. Meanwhile, one request in a hundred fails, and workers,
triggerers, scheduler and API server are killed. At the end, the faults stop, the soak clears failed tasks as an
operator would do, and :mod:`soak.judge` checks the result. The exit status is 0 only if nothing was lost or duplicated.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import av
import httpx

from airflow_provider_roughy.emulator import Emulator
from harness.airflow import FAST_SCHEDULER_TAKEOVER, FINISHED, Component, LocalAirflow
from harness.postgres import postgres
from soak.judge import Finding, SoakResult, judge
from soak.workload import FaultInjector, ProcessKiller, Users, memory_of, sha256_of

DAGS = Path(__file__).parent / "dags"
NIGHT, ROUGH_CUTS, MEDIA = "soak_night", "soak_rough_cuts", "soak_media"
#: Different from the emulator's defaults, so that a match in a log or table is a leak.
API_KEY, WEBHOOK_SECRET = "sk_soak_5d0c91e7", "whsec_c29hazpub3RoaW5nbG9zdG5vdGhpbmdkb3VibGVk"
#: Seconds between the starts of two runs of the batch.
BETWEEN_NIGHTS = 60.0
#: The maximum number of seconds to settle, and how often failed tasks are cleared at most.
SETTLING, CLEARS = 1800.0, 5
#: Seconds between two samples of memory and unpaid assets.
BETWEEN_SAMPLES = 30.0
MEASURED: dict[Component, str] = {
    "triggerer": "triggerer",
    "triggerer-2": "triggerer-2",
    "scheduler": "scheduler and workers",
    "api-server": "API server",
}
#: Columns whose row counts show that the search for secrets had something to search.
SEARCHED = ("xcom.value", "asset_event.extra", "rendered_task_instance_fields.rendered", "log.extra", "dag_run.conf")
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now():%H:%M:%S}  {text}", flush=True)


class Soak:
    """One soak.

    :param folder: The folder of all files.
    :param minutes: Its duration.
    :param batch: The number of recordings of the first batch.
    :param seed: The seed of all random numbers.
    :param faults: The share of requests that fail.
    :param between_kills: Seconds between two kills, on average.
    """

    def __init__(
        self, folder: Path, *, minutes: float, batch: int, seed: int, faults: float, between_kills: float
    ) -> None:
        self._folder = folder
        self._seconds = minutes * 60
        self._batch = batch
        # Some recordings cost more than one credit, so that the credits run out.
        self._balance = batch
        self._seed = seed
        self._faults = faults
        self._between_kills = between_kills
        self._nights = 0
        self._clears: Counter[str] = Counter()
        self._unpaid: set[str] = set()
        self._memory: list[tuple[float, dict[Component, tuple[int, int]]]] = []

    def run(self) -> tuple[list[Finding], list[str]]:
        """Run the soak.

        :return: The results of the checks, and lines with statistics.
        """
        generators = [random.Random(f"{self._seed} {what}") for what in ("injector", "users", "killer")]
        recordings = self._folder / "recordings"
        recordings.mkdir()
        with contextlib.ExitStack() as stack:
            self._injector = FaultInjector(generators[0], self._faults)
            self._roughy = roughy = stack.enter_context(
                Emulator(
                    api_key=API_KEY,
                    balance=self._balance,
                    webhook_secret=WEBHOOK_SECRET,
                    on_request=self._injector,
                    data_dir=self._folder / "roughy",
                )
            )
            self._airflow = airflow = LocalAirflow(
                [DAGS],
                connections={"roughy_default": roughy.airflow_connection},
                home=self._folder / "airflow",
                sql_alchemy_conn=stack.enter_context(postgres()),
                settings=FAST_SCHEDULER_TAKEOVER,
                environment={"ROUGHY_SOAK": str(self._folder)},
            )
            say(f"Starting Airflow at {airflow.url}; the emulator is at {roughy.url}")
            stack.enter_context(airflow)
            airflow.restart("triggerer-2")
            self._users = Users(generators[1], recordings, roughy)
            self._killer = ProcessKiller(generators[2], airflow, pause=self._between_kills, say=say)
            self._wait_until("the watcher has started", lambda: any((self._folder / "taken").glob("note-*.json")), 240)
            self._register_webhook()
            say(f"Making {self._batch} recordings for the first batch")
            for _ in range(self._batch):
                self._users.record()
            self._run_with_faults()
            self._settle()
            say("Checking the result")
            return list(judge(self._collect())), list(self._statistics())

    # Under faults

    def _register_webhook(self) -> None:
        httpx.post(
            f"{self._roughy.url}/v1/webhook-endpoints",
            headers={"Authorization": f"Bearer {API_KEY}"},
            json={"url": f"{self._airflow.url}/roughy/webhooks", "event_types": ["asset.ready"]},
            trust_env=False,
        ).raise_for_status()

    def _run_with_faults(self) -> None:
        say(f"Starting {self._seconds / 60:g} minutes of faults and kills")
        stopped = threading.Event()
        self._injector.start(self._roughy)
        end, next_night, next_sample = time.monotonic() + self._seconds, 0.0, 0.0
        with ThreadPoolExecutor(2) as pool:
            running: list[Future[None]] = [
                pool.submit(self._users.run, stopped),
                pool.submit(self._killer.run, stopped),
            ]
            try:
                while (now := time.monotonic()) < end:
                    for each in running:
                        if each.done():
                            each.result()
                    if now >= next_night:
                        next_night = now + BETWEEN_NIGHTS
                        self._start_night()
                    if now >= next_sample:
                        next_sample = now + BETWEEN_SAMPLES
                        self._sample()
                    time.sleep(1)
            finally:
                stopped.set()
            for each in running:
                each.result()
        self._sample()
        self._injector.stop()

    def _start_night(self) -> None:
        # If the API server is down, the next run ingests these files.
        with suppress(httpx.HTTPError):
            self._airflow.trigger_dag(NIGHT)
            self._nights += 1
            say(
                f"Night {self._nights}: {len(self._users.recordings)} recordings, balance {self._roughy.balance}, "
                f"{self._injector.requests} requests, {self._injector.faults.total()} faults, "
                f"{self._killer.kills.total()} kills"
            )

    def _sample(self) -> None:
        self._unpaid |= {asset["id"] for asset in self._roughy.assets if asset["state"] == "pending_payment"}
        self._memory.append(
            (time.monotonic(), {component: memory_of(self._airflow.pids(component)) for component in MEASURED})
        )

    # Without faults

    def _settle(self) -> None:
        say("Stopped faults and kills, and topped up the credits; waiting for all runs")
        self._users.top_up(10 * len(self._users.recordings) + 1000)
        self._wait_for_runs()
        # These runs ingest what was deferred, and what was unpaid until the top-up.
        for _ in range(2):
            self._airflow.trigger_dag(NIGHT)
            self._nights += 1
            self._wait_for_runs()
        ready = {asset["id"] for asset in self._roughy.assets if asset["state"] == "ready"}
        with suppress(TimeoutError):
            self._wait_until("all is taken", lambda: ready <= self._taken_by_ledger(), 300)
        self._wait_for_runs()

    def _wait_for_runs(self) -> None:
        for _ in range(CLEARS + 1):
            with suppress(TimeoutError):
                self._wait_until("all runs have ended", lambda: not self._runs(lambda s: s not in FINISHED), SETTLING)
            failed = self._runs(lambda state: state == "failed")
            if not failed:
                return
            for run in failed:
                self._clear(run["dag_id"], run["dag_run_id"])

    def _clear(self, dag_id: str, run_id: str) -> None:
        bad = [
            task
            for task in self._airflow.task_instances(dag_id, run_id)
            if task["state"] in ("failed", "upstream_failed")
        ]
        for task in bad:
            if task["state"] == "failed":
                self._clears[task["task_id"]] += 1
                say(f"Cleared {dag_id} {run_id} {task['task_id']} {task['map_index']}")
        chosen = [(task["task_id"], task["map_index"]) if task["map_index"] >= 0 else task["task_id"] for task in bad]
        self._airflow.clear(dag_id, run_id, chosen)

    def _runs(self, matches: Callable[[str], bool]) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = []
        while True:
            page = {"limit": 100, "offset": len(runs), "order_by": "id"}
            reply = self._airflow.request("GET", "/dags/~/dagRuns", params=page).json()
            runs += reply["dag_runs"]
            if not reply["dag_runs"] or len(runs) >= reply["total_entries"]:
                return [run for run in runs if matches(run["state"])]

    def _wait_until(self, what: str, is_so: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            if hasattr(self, "_killer"):
                self._killer.restart_ended()
            if time.monotonic() > deadline:
                say(f"Timed out after {seconds:g} s, waiting until {what}")
                raise TimeoutError(what)
            time.sleep(2)

    # The result

    def _taken_by_ledger(self) -> set[str]:
        return {entry.asset_id for entry in ledger_entries(self._folder / "taken") if entry.asset_id}

    def _collect(self) -> SoakResult:
        roughy, users = self._roughy, self._users
        self._tasks = self._airflow.task_instances("~", "~")
        cuts = self._folder / "cuts"
        return SoakResult(
            recordings=users.recordings,
            uploaded_by_others=users.uploaded_by_others,
            assets=roughy.assets,
            cuts=roughy.cuts,
            renders=roughy.renders,
            spent=self._balance + users.topped_up - roughy.balance,
            ledger={Path(entry.source).name: entry.state for entry in ledger_entries(self._folder / "ledger")},
            taken=[
                asset_id
                for task in self._tasks
                if task["dag_id"] == MEDIA and task["state"] == "success"
                for asset_id in self._airflow.xcom(MEDIA, task["dag_run_id"], "take")
            ],
            captions={path.stem for path in cuts.glob("*.srt") if "-->" in path.read_text()},
            downloads={path.stem: sha256_of(path) if is_playable(path) else None for path in cuts.glob("*.mp4")},
            unfinished_files=[str(path.relative_to(self._folder)) for path in self._folder.rglob(".roughy-*")],
            failed_runs=[
                f"{run['dag_id']} {run['dag_run_id']} {run['state']}" for run in self._runs(lambda s: s != "success")
            ],
            kills=self._killer.kills.total(),
            lost_creations=self._injector.lost_creations,
            leaks=self._leaks(),
        )

    def _leaks(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {
            name: set() for name in ("the API key", "the webhook secret", "a signed URL", "an upload URL")
        }
        needles = {"the API key": API_KEY, "the webhook secret": WEBHOOK_SECRET, "a signed URL": "X-Amz-Signature"}
        upload_ids = self._injector.upload_ids | {asset["upload_id"] for asset in self._roughy.assets}
        self._places: Counter[str] = Counter()
        for where, text in self._airflow.everything_visible():
            self._places["logs" if where.startswith("logs/") else where] += 1
            for name, needle in needles.items():
                if needle.removeprefix("whsec_") in text:
                    found[name].add(where)
            if not upload_ids.isdisjoint(_ID.findall(text)):
                found["an upload URL"].add(where)
        return found

    # Statistics

    def _statistics(self) -> Iterator[str]:
        """Yield the numbers of faults, kills, retries and memory."""
        injector, killer, users = self._injector, self._killer, self._users
        yield f"nights {self._nights}, recordings {len(users.recordings)}, by others {len(users.uploaded_by_others)}"
        yield f"assets seen in pending_payment {len(self._unpaid)}"
        yield f"requests {injector.requests}, faults injected {injector.faults.total()}: {_counted(injector.faults)}"
        yield f"kills {killer.kills.total()}: {_counted(killer.kills)}"
        if killer.ended:
            yield f"components that ended by themselves and were restarted: {_counted(killer.ended)}"
        rows = {where: count for where, count in self._places.items() if where.startswith(SEARCHED)}
        yield f"secrets: searched {self._places['logs']} logs and {len(self._places) - 1} columns: {_counted(rows)}"
        deliveries = Counter(str(each["state"]) for each in self._roughy.webhook_deliveries)
        yield f"webhooks: {_counted(deliveries)}"
        tries = sum(max(1, task["try_number"]) for task in self._tasks)
        burned = Counter({task_id: sum(n) for task_id, n in _grouped(self._tasks).items() if sum(n)})
        yield f"task instances {len(self._tasks)}, tries {tries}, retries {burned.total()}: {_counted(burned)}"
        yield f"failed tasks cleared at the end {self._clears.total()}: {_counted(self._clears)}"
        (_, first), (_, last) = self._memory[0], self._memory[-1]
        for component, name in MEASURED.items():
            before, after = (
                " RSS {:.0f} MiB, PSS {:.0f} MiB".format(*(size / 2**20 for size in sample[component]))
                for sample in (first, last)
            )
            maximum = max(sample[component][1] for _, sample in self._memory) / 2**20
            yield f"memory of {name:<22} start:{before}; end:{after}; maximum PSS {maximum:.0f} MiB"


def _grouped(tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for task in tasks:
        found.setdefault(task["task_id"], []).append(max(0, task["try_number"] - 1))
    return found


def _counted(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"


def is_playable(path: Path) -> bool:
    """Return whether a video can be decoded to its end, and has video and audio."""
    try:
        with av.open(str(path)) as container:
            kinds = {type(frame) for frame in container.decode()}
    except av.FFmpegError:
        return False
    return kinds == {av.VideoFrame, av.AudioFrame}


def ledger_entries(folder: Path) -> list[Any]:
    """Return the entries of a ledger."""
    # Imported late: it imports Airflow, which creates AIRFLOW_HOME immediately.
    from airflow_provider_roughy.ledger import Ledger

    return list(Ledger(folder).entries())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: The arguments.
    :return: The exit status: 0 if nothing was lost, duplicated or leaked.
    """
    parser = argparse.ArgumentParser(
        prog="python -m soak", description="Run batches on a real Airflow under faults and kills."
    )
    parser.add_argument("--minutes", type=float, default=60, help="duration (60)")
    parser.add_argument("--batch", type=int, default=500, help="recordings of the first batch (500)")
    parser.add_argument(
        "--seed", type=int, default=None, help="repeats the random faults and kills of a run that printed it"
    )
    parser.add_argument("--faults", type=float, default=1, help="per cent of the requests that fail (1)")
    parser.add_argument("--between-kills", type=float, default=80, help="seconds between two kills, on average (80)")
    parser.add_argument("--keep", action="store_true", help="always keep the folder with logs, files and ledgers")
    options = parser.parse_args(arguments)
    # SIGTERM ends it like Ctrl-C, so that no process is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="roughy-soak-"))
    os.environ["AIRFLOW_HOME"] = str(folder / "here")
    say(f"Seed {seed}; logs, files and ledgers are in {folder}")
    soak = Soak(
        folder,
        minutes=options.minutes,
        batch=options.batch,
        seed=seed,
        faults=options.faults / 100,
        between_kills=options.between_kills,
    )
    try:
        findings, lines = soak.run()
    except KeyboardInterrupt:
        say(f"Interrupted; everything was stopped; logs, files and ledgers are in {folder}")
        return 130
    print(f"\n{'':<44}{'expected':>14}{'found':>10}")
    for finding in findings:
        print(finding)
    print()
    for line in lines:
        print(line)
    good = all(finding.is_good for finding in findings)
    print(f"\n{'All checks hold' if good else f'Some checks FAILED; all files are in {folder}'}; seed {seed}")
    if good and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
