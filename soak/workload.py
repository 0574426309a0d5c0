"""The environment of a soak: new recordings, top-ups, network faults, and kills of Airflow's processes."""

from __future__ import annotations

import hashlib
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from airflow_provider_roughy.emulator import Emulator, Fault, Request
from harness import media
from harness.airflow import Component, LocalAirflow
from soak.judge import Recording

#: Downloads are few, so that their share of faults is so many times higher.
FAULTY_DOWNLOADS = 10
#: Seconds between a kill and the restart, from and to.
DOWNTIME = (1.0, 10.0)
#: The processes to kill; ``worker`` is the process of a task, or that and its supervisor.
TARGETS: tuple[Component, ...] = ("worker", "triggerer", "worker", "scheduler", "triggerer-2", "api-server")
#: Seconds between two recordings, on average: 500 in an hour. And between two uploads without Airflow.
BETWEEN_RECORDINGS, BETWEEN_OTHERS = 7.2, 36.0
#: Seconds between two top-ups, and the credits of one: about the consumption, so that they run out at times.
BETWEEN_TOP_UPS, CREDITS = (30.0, 60.0), (3, 11)
#: Recordings in a hundred that are videos, damaged, not media, and expensive; the others are short and cost one credit.
VIDEOS, DAMAGED, NOT_MEDIA, EXPENSIVE = 10, 5, 4, 4
EXPENSIVE_CREDITS = 5


class FaultInjector:
    """Injects random faults, as a callback of the emulator.

    :param rng: Its own random numbers.
    :param share: The share of requests that fail.
    """

    def __init__(self, rng: random.Random, share: float) -> None:
        self._rng = rng
        self._share = share
        self._roughy: Emulator | None = None
        self._requests, self._downloads = self._gap(), self._gap(FAULTY_DOWNLOADS)
        #: The number of requests, of faults by kind, and of creations whose reply was lost.
        self.requests = 0
        self.faults: Counter[str] = Counter()
        self.lost_creations = 0
        #: The ids of all uploads, including removed ones.
        self.upload_ids: set[str] = set()

    def start(self, roughy: Emulator) -> None:
        """Start to inject faults.

        :param roughy: The emulator.
        """
        self._roughy = roughy

    def stop(self) -> None:
        """Stop, and remove all faults."""
        roughy, self._roughy = self._roughy, None
        if roughy is not None:
            roughy.clear_faults()

    def __call__(self, request: Request) -> None:
        """Count a finished request, and inject a fault for the next one if it is due."""
        self.requests += 1
        if request.method == "POST" and request.path == "/v1/assets" and request.status is None:
            self.lost_creations += 1
        if request.path.startswith("/v1/uploads/"):
            self.upload_ids.add(request.path.rpartition("/")[2])
        self._requests -= 1
        if self._requests == 0:
            self._requests = self._gap()
            self._inject_fault("*", "")
        if request.path.startswith("/storage/"):
            self._downloads -= 1
            if self._downloads == 0:
                self._downloads = self._gap(FAULTY_DOWNLOADS)
                self._inject_fault("/storage/*", " of a download")

    def _gap(self, more: float = 1) -> int:
        share = min(self._share * more, 0.5)
        return 1 + int(math.log(1 - self._rng.random()) / math.log(1 - share))

    def _inject_fault(self, path: str, suffix: str) -> None:
        rng = self._rng
        name, fault = rng.choice(
            [
                ("reset", {"drop": True}),
                ("reset in the request", {"cut_after": rng.randint(0, 20_000)}),
                ("reset in the reply", {"cut_reply_after": rng.randint(0, 200)}),
                ("5xx", {"status": rng.choice([500, 502, 503, 504])}),
                ("429", {"status": 429, "headers": {"Retry-After": str(rng.randint(1, 5))}}),
                ("lost reply", {"lose_reply": True}),
                ("slow", {"delay": rng.uniform(1, 8)}),
            ]
        )
        if self._roughy is not None:
            self.faults[name + suffix] += 1
            self._roughy.inject(Fault(path=path, **fault))  # type: ignore[arg-type]


class Users:
    """The users: put recordings into a folder, upload without Airflow, top up.

    :param rng: Its own random numbers.
    :param folder: The folder of recordings.
    :param roughy: The emulator.
    """

    def __init__(self, rng: random.Random, folder: Path, roughy: Emulator) -> None:
        self._rng = rng
        self._folder = folder
        self._roughy = roughy
        self._temporary = folder.with_name("temporary")
        self._temporary.mkdir()
        self.recordings: list[Recording] = []
        self.uploaded_by_others: list[str] = []
        self.topped_up = 0
        self._known: set[str] = set()

    def run(self, stopped: threading.Event) -> None:
        """Act until ``stopped`` is set."""
        rng = self._rng
        actions: dict[Callable[[], None], Callable[[], float]] = {
            self.record: lambda: rng.expovariate(1 / BETWEEN_RECORDINGS),
            self.upload_without_airflow: lambda: rng.expovariate(1 / BETWEEN_OTHERS),
            self.top_up: lambda: rng.uniform(*BETWEEN_TOP_UPS),
        }
        now = time.monotonic()
        due = {action: now + pause() for action, pause in actions.items()}
        while not stopped.wait(max(0.0, min(due.values()) - time.monotonic())):
            action = min(due, key=lambda action: due[action])
            action()
            due[action] += actions[action]()

    def record(self) -> None:
        """Put a recording into the folder, by an atomic rename."""
        path, kind, credits = self._unique(lambda: self._make(len(self.recordings)))
        sha256 = sha256_of(path)
        self.recordings.append(Recording(path.name, kind, sha256, credits))  # type: ignore[arg-type]
        path.replace(self._folder / path.name)

    def _unique(self, make: Callable[[], tuple[Path, str, int]]) -> tuple[Path, str, int]:
        """Make recordings until one has bytes that no earlier one has."""
        while True:
            made = make()
            sha256 = sha256_of(made[0])
            if sha256 not in self._known:
                self._known.add(sha256)
                return made

    def _make(self, number: int) -> tuple[Path, str, int]:
        rng = self._rng
        lot, name = rng.randrange(100), f"{number:04}"
        begin, seconds = rng.uniform(0.1, 0.8), rng.uniform(1.2, 3)
        for share, make in (
            (VIDEOS, lambda: (self._video(name, begin, seconds), "good", 1)),
            (DAMAGED, lambda: (media.corrupt(self._audio(name, seconds)), "damaged", 0)),
            (NOT_MEDIA, lambda: (self._text(name), "rejected", 0)),
            (EXPENSIVE, lambda: (self._long(name, seconds), "good", EXPENSIVE_CREDITS)),
        ):
            if lot < share:
                return make()
            lot -= share
        return self._audio(name, seconds), "good", 1

    def _video(self, name: str, begin: float, seconds: float) -> Path:
        return media.make_talk(self._temporary / f"{name}.mp4", loud=[(begin, seconds - 0.2)], seconds=seconds)

    def _audio(self, name: str, seconds: float) -> Path:
        return media.make_audio(self._temporary / f"{name}.mp3", seconds=seconds)

    def _long(self, name: str, seconds: float) -> Path:
        return media.make_long_audio(self._temporary / f"{name}.wav", seconds=60 * (EXPENSIVE_CREDITS - 1) + seconds)

    def _text(self, name: str) -> Path:
        path = self._temporary / f"{name}.mp3"
        path.write_text(f"Notes on interview {name}, saved under the wrong name.\n" * 50)
        return path

    def upload_without_airflow(self) -> None:
        """Create an asset without Airflow, whose media Roughy is to measure."""
        path, _, _ = self._unique(lambda: (self._audio("other", self._rng.uniform(1.2, 3)), "good", 1))
        self.uploaded_by_others.append(self._roughy.seed_asset("processing", content=path.read_bytes()))

    def top_up(self, credits: int | None = None) -> None:
        """Buy credits."""
        credits = self._rng.randint(*CREDITS) if credits is None else credits
        self._roughy.top_up(credits)
        self.topped_up += credits


class ProcessKiller:
    """Kills processes by SIGKILL, one after another, and restarts them.

    :param rng: Its own random numbers.
    :param airflow: The Airflow whose processes are killed.
    :param pause: Seconds between two kills, on average.
    :param say: Called with a line about each kill and restart.
    """

    def __init__(self, rng: random.Random, airflow: LocalAirflow, *, pause: float, say: Callable[[str], None]) -> None:
        self._rng = rng
        self._pause = pause
        self._airflow = airflow
        self._say = say
        self.kills: Counter[str] = Counter()
        #: Components that ended without a kill, which a service manager would restart.
        self.ended: Counter[str] = Counter()

    def run(self, stopped: threading.Event) -> None:
        """Kill processes until ``stopped`` is set; every component is restarted before the return."""
        targets = self._targets()
        next_kill = time.monotonic() + self._rng.uniform(0.5, 1.5) * self._pause
        while not stopped.wait(2):
            self.restart_ended()
            if time.monotonic() >= next_kill:
                self._kill(next(targets), stopped)
                next_kill = time.monotonic() + self._rng.uniform(0.5, 1.5) * self._pause

    def restart_ended(self) -> None:
        """Restart the components that have ended by themselves."""
        for component in self._airflow.ended():
            self.ended[component] += 1
            self._say(f"Restarting the {component}, which ended by itself")
            self._airflow.restart(component)

    def _targets(self) -> Iterator[Component]:
        while True:
            yield from self._rng.sample(TARGETS, len(TARGETS))

    def _kill(self, component: Component, stopped: threading.Event) -> None:
        if component == "worker":
            self._kill_a_worker(stopped)
            return
        self._say(f"Killing the {component}")
        self._airflow.kill(component)
        self.kills[component] += 1
        stopped.wait(self._rng.uniform(*DOWNTIME))
        self._airflow.restart(component)

    def _kill_a_worker(self, stopped: threading.Event) -> None:
        with_supervisor = self._rng.random() < 0.3
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not stopped.is_set():
            running = [task for task in self._airflow.task_instances("~", "~") if task["state"] == "running"]
            self._rng.shuffle(running)
            for task in running:
                where = task["dag_id"], task["dag_run_id"], task["task_id"], task["map_index"]
                with suppress(LookupError, psutil.Error):
                    pids = self._airflow.worker_pids(*where)
                    if not pids:
                        continue
                    process = psutil.Process(pids[0])
                    if with_supervisor:
                        process.parent().kill()
                    process.kill()
                    what = "a task and its supervisor" if with_supervisor else "a task"
                    self.kills[what] += 1
                    self._say(f"Killed {what}: {task['dag_id']} {task['task_id']}, try {task['try_number']}")
                    return
            stopped.wait(1)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def memory_of(pids: set[int]) -> tuple[int, int]:
    """Return the RSS and the PSS of some processes in bytes; the latter counts shared memory once."""
    rss = pss = 0
    for pid in pids:
        with suppress(psutil.Error, OSError):
            memory = psutil.Process(pid).memory_full_info()
            rss, pss = rss + memory.rss, pss + memory.pss
    return rss, pss
