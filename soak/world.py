"""What happens to an Airflow in a night: recordings come in, credits run out, the network fails, machines die."""

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

#: Downloads are so few that it takes more for any to go wrong: how much more.
FAULTY_DOWNLOADS = 10
#: Seconds for which the dead one is away.
AWAY = (1.0, 10.0)
#: What is killed; ``worker`` is the process of a task, or that and the one that supervises it.
VICTIMS: tuple[Component, ...] = ("worker", "triggerer", "worker", "scheduler", "triggerer-2", "api-server")
#: Seconds between two recordings, on average: 500 in an hour. And between two that others upload.
BETWEEN_RECORDINGS, BETWEEN_OTHERS = 7.2, 36.0
#: Seconds between two top-ups, and the credits of one: about what is used up, so that at times there are none left.
BETWEEN_TOP_UPS, CREDITS = (30.0, 60.0), (3, 11)
#: Recordings of a hundred that are videos, damaged, none at all, and dear; the others are short and cost one credit.
VIDEOS, DAMAGED, REFUSED, DEAR = 10, 5, 4, 4
DEAR_CREDITS = 5


class Weather:
    """Faults at random, as a callback of the emulator.

    :param rng: Of its own.
    :param share: Of the requests that go wrong.
    """

    def __init__(self, rng: random.Random, share: float) -> None:
        self._rng = rng
        self._share = share
        self._roughy: Emulator | None = None
        self._requests, self._downloads = self._gap(), self._gap(FAULTY_DOWNLOADS)
        #: How many requests there were, how many faults by kind, and how many creations whose reply was lost.
        self.requests = 0
        self.faults: Counter[str] = Counter()
        self.lost_creations = 0
        #: Of uploads, also of those that are no more.
        self.upload_ids: set[str] = set()

    def begin(self, roughy: Emulator) -> None:
        """Begin.

        :param roughy: Where.
        """
        self._roughy = roughy

    def end(self) -> None:
        """Clear up."""
        roughy, self._roughy = self._roughy, None
        if roughy is not None:
            roughy.clear_faults()

    def __call__(self, request: Request) -> None:
        """Take note of a request that is over, and let the next one go wrong if it is its turn."""
        self.requests += 1
        if request.method == "POST" and request.path == "/v1/assets" and request.status is None:
            self.lost_creations += 1
        if request.path.startswith("/v1/uploads/"):
            self.upload_ids.add(request.path.rpartition("/")[2])
        self._requests -= 1
        if self._requests == 0:
            self._requests = self._gap()
            self._strike("*", "")
        if request.path.startswith("/storage/"):
            self._downloads -= 1
            if self._downloads == 0:
                self._downloads = self._gap(FAULTY_DOWNLOADS)
                self._strike("/storage/*", " of a download")

    def _gap(self, more: float = 1) -> int:
        share = min(self._share * more, 0.5)
        return 1 + int(math.log(1 - self._rng.random()) / math.log(1 - share))

    def _strike(self, path: str, of_what: str) -> None:
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
            self.faults[name + of_what] += 1
            self._roughy.inject(Fault(path=path, **fault))  # type: ignore[arg-type]


class Life:
    """What people do: put recordings into a folder, upload by other ways, top up.

    :param rng: Of its own.
    :param folder: Where recordings go.
    :param roughy: Where others upload.
    """

    def __init__(self, rng: random.Random, folder: Path, roughy: Emulator) -> None:
        self._rng = rng
        self._folder = folder
        self._roughy = roughy
        self._elsewhere = folder.with_name("being-made")
        self._elsewhere.mkdir()
        self.recordings: list[Recording] = []
        self.uploaded_by_others: list[str] = []
        self.topped_up = 0
        self._known: set[str] = set()

    def run(self, over: threading.Event) -> None:
        """Go on until it is over."""
        rng = self._rng
        acts: dict[Callable[[], None], Callable[[], float]] = {
            self.record: lambda: rng.expovariate(1 / BETWEEN_RECORDINGS),
            self.upload_otherwise: lambda: rng.expovariate(1 / BETWEEN_OTHERS),
            self.top_up: lambda: rng.uniform(*BETWEEN_TOP_UPS),
        }
        now = time.monotonic()
        due = {act: now + pause() for act, pause in acts.items()}
        while not over.wait(max(0.0, min(due.values()) - time.monotonic())):
            act = min(due, key=lambda act: due[act])
            act()
            due[act] += acts[act]()

    def record(self) -> None:
        """Put a recording into the folder, whole at once."""
        path, kind, credits = self._new(lambda: self._make(len(self.recordings)))
        sha256 = sha256_of(path)
        self.recordings.append(Recording(path.name, kind, sha256, credits))  # type: ignore[arg-type]
        path.replace(self._folder / path.name)

    def _new(self, make: Callable[[], tuple[Path, str, int]]) -> tuple[Path, str, int]:
        """Make a recording until it is one whose bytes nobody has had yet."""
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
            (REFUSED, lambda: (self._text(name), "rejected", 0)),
            (DEAR, lambda: (self._long(name, seconds), "good", DEAR_CREDITS)),
        ):
            if lot < share:
                return make()
            lot -= share
        return self._audio(name, seconds), "good", 1

    def _video(self, name: str, begin: float, seconds: float) -> Path:
        return media.make_talk(self._elsewhere / f"{name}.mp4", loud=[(begin, seconds - 0.2)], seconds=seconds)

    def _audio(self, name: str, seconds: float) -> Path:
        return media.make_audio(self._elsewhere / f"{name}.mp3", seconds=seconds)

    def _long(self, name: str, seconds: float) -> Path:
        return media.make_long_audio(self._elsewhere / f"{name}.wav", seconds=60 * (DEAR_CREDITS - 1) + seconds)

    def _text(self, name: str) -> Path:
        path = self._elsewhere / f"{name}.mp3"
        path.write_text(f"Notes on interview {name}, saved under the wrong name.\n" * 50)
        return path

    def upload_otherwise(self) -> None:
        """Let somebody else upload a recording, which Roughy is to measure."""
        path, _, _ = self._new(lambda: (self._audio("other", self._rng.uniform(1.2, 3)), "good", 1))
        self.uploaded_by_others.append(self._roughy.seed_asset("processing", content=path.read_bytes()))

    def top_up(self, credits: int | None = None) -> None:
        """Buy credits."""
        credits = self._rng.randint(*CREDITS) if credits is None else credits
        self._roughy.top_up(credits)
        self.topped_up += credits


class Death:
    """Kills by SIGKILL, one after another, and what takes the place of the dead.

    :param rng: Of its own.
    :param airflow: Who is struck.
    :param pause: Seconds between two kills, on average.
    :param say: Told of each.
    """

    def __init__(self, rng: random.Random, airflow: LocalAirflow, *, pause: float, say: Callable[[str], None]) -> None:
        self._rng = rng
        self._pause = pause
        self._airflow = airflow
        self._say = say
        self.kills: Counter[str] = Counter()
        #: Components that ended without a kill, as a service manager would start anew.
        self.ended: Counter[str] = Counter()

    def run(self, over: threading.Event) -> None:
        """Go on until it is over; everything runs then."""
        victims = self._victims()
        next_kill = time.monotonic() + self._rng.uniform(0.5, 1.5) * self._pause
        while not over.wait(2):
            self.revive()
            if time.monotonic() >= next_kill:
                self._kill(next(victims), over)
                next_kill = time.monotonic() + self._rng.uniform(0.5, 1.5) * self._pause

    def revive(self) -> None:
        """Start what has ended by itself."""
        for component in self._airflow.ended():
            self.ended[component] += 1
            self._say(f"Restarting the {component}, which ended by itself")
            self._airflow.restart(component)

    def _victims(self) -> Iterator[Component]:
        while True:
            yield from self._rng.sample(VICTIMS, len(VICTIMS))

    def _kill(self, component: Component, over: threading.Event) -> None:
        if component == "worker":
            self._kill_a_worker(over)
            return
        self._say(f"Killing the {component}")
        self._airflow.kill(component)
        self.kills[component] += 1
        over.wait(self._rng.uniform(*AWAY))
        self._airflow.restart(component)

    def _kill_a_worker(self, over: threading.Event) -> None:
        with_supervisor = self._rng.random() < 0.3
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not over.is_set():
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
            over.wait(1)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def memory_of(pids: set[int]) -> tuple[int, int]:
    """Return the RSS and the PSS of some processes in bytes; the latter counts what they share once."""
    rss = pss = 0
    for pid in pids:
        with suppress(psutil.Error, OSError):
            told = psutil.Process(pid).memory_full_info()
            rss, pss = rss + told.rss, pss + told.pss
    return rss, pss
