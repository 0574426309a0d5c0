"""The cost of a folder: as one task, by hand, as one task per file on Airflow; and of large files beside curl."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psutil

from benchmarks.batches import PARALLEL
from benchmarks.clients import SMALL, curl_command
from benchmarks.clients import run as run_client
from benchmarks.measure import MIB, Spread, Target, table
from benchmarks.processes import ROOT, module
from benchmarks.servers import KEY, Scratch, Server, emulated, sink, tls_sink
from harness.airflow import LocalAirflow

#: The numbers of files in a folder. The largest is uploaded once only, to measure memory.
_COUNTS, _MAX_FILES = (100, 1000), 10_000
#: A recording of about 46 KB.
_RECORDING = ROOT / "demo" / "media" / "interview.mp3"
_LARGE_FILES, _LARGE = 20, 256 * MIB
_LARGE_TITLE = f"{_LARGE_FILES} files of {_LARGE / MIB:g} MiB"
_ROUNDS = 5

OURS, NO_LEDGER, SCRIPT, CURL = "this package's operator", "the same without a ledger", "asyncio and httpx", "curl"
ONE_TASK, MAPPED = "the operator as a task", "a mapped task a file"


@dataclass(frozen=True)
class Cost:
    """The cost of a folder.

    :param wall: Elapsed seconds.
    :param cpu: Seconds of processor time.
    :param growth: The peak memory above that of an idle process, in bytes; 0 if it is not measured.
    :param requests: The number of requests per file; 0 if it is not measured.
    """

    wall: float
    cpu: float
    growth: float = 0
    requests: float = 0


#: The costs by client, one for each round.
Results = dict[str, list[Cost]]


def run(scratch: Scratch, *, say: Callable[[str], None]) -> tuple[list[str], list[Target]]:
    """Measure folders of small files, and of large ones.

    :param scratch: The folder for files.
    :param say: Called with lines about the progress.
    :returns: Tables and targets.
    """
    small = {count: _small(scratch, count, say) for count in _COUNTS}
    say(f"batch: {_MAX_FILES:,} files")
    with _folder(scratch, _MAX_FILES) as folder:
        most = _measure(scratch, OURS, folder, _MAX_FILES)
    on_airflow = _on_airflow(scratch, say)
    large = {name: _large(scratch, serve, name, say) for name, serve in (("sink", sink), ("sink over TLS", tls_sink))}
    tables = [
        *(_table(f"{count:,} files of 46 KB", results, SCRIPT) for count, results in small.items()),
        _table(f"{_MAX_FILES:,} files of 46 KB", {OURS: [most]}, OURS),
        *(_table(f"{count:,} files on Airflow", results, ONE_TASK) for count, results in on_airflow.items()),
        *(_table(f"{_LARGE_TITLE}, {name}", results, CURL) for name, results in large.items()),
    ]
    return tables, list(_targets(small[1000], most, on_airflow, large))


def _small(scratch: Scratch, count: int, say: Callable[[str], None]) -> Results:
    results: Results = {name: [] for name in (OURS, NO_LEDGER, SCRIPT)}
    with _folder(scratch, count) as folder:
        for number in range(_ROUNDS):
            say(f"batch: {count:,} files, round {number + 1} of {_ROUNDS}")
            for name in random.sample(list(results), len(results)):
                results[name].append(_measure(scratch, name, folder, count))
    return results


@contextmanager
def _folder(scratch: Scratch, count: int) -> Iterator[Path]:
    """Create a folder with so many recordings. They are copies, as hard links are one recording."""
    folder = scratch.folder / f"recordings-{count}"
    folder.mkdir()
    for number in range(count):
        shutil.copy(_RECORDING, folder / f"{number}.mp3")
    yield folder
    shutil.rmtree(folder)


@contextmanager
def _emulated(scratch: Scratch) -> Iterator[Server]:
    name = f"roughy-{uuid4()}"
    with emulated(scratch, name, progression="immediate") as server:
        yield server
    shutil.rmtree(scratch.folder / name)


def _measure(scratch: Scratch, name: str, folder: Path, count: int) -> Cost:
    """Upload a folder to a new emulator, in a new process."""
    ledger = scratch.folder / "ledger"
    with _emulated(scratch) as server:
        commands = {
            OURS: module("batches", "operator", folder, ledger),
            NO_LEDGER: module("batches", "operator", folder),
            SCRIPT: module("batches", "script", folder, server.url, KEY, server.project_id),
        }
        cost = run_client(commands[name], server)
        asked = len(server.ask("/_emulator/requests"))
    shutil.rmtree(ledger, ignore_errors=True)
    return Cost(cost["wall"], cost["cpu"], cost["peak"] - cost["idle"], asked / count)


def _on_airflow(scratch: Scratch, say: Callable[[str], None]) -> dict[int, Results]:
    """Run folders as DAGs; mapped tasks with a hundred files only, as they take long."""
    results: dict[int, Results] = {count: {} for count in _COUNTS}
    dags = [(100, ONE_TASK, "one_task"), (100, MAPPED, "one_task_per_file"), (1000, ONE_TASK, "one_task")]
    with _emulated(scratch) as server:
        connections = {"roughy_default": server.connection}
        settings = {"CORE__PARALLELISM": str(PARALLEL)}
        with LocalAirflow([ROOT / "benchmarks" / "dags"], connections=connections, settings=settings) as airflow:
            for count, name, dag_id in dags:
                say(f"batch: {count:,} files on Airflow, {name}")
                with _folder(scratch, count) as folder:
                    results[count][name] = [_run_dag(airflow, dag_id, folder, scratch.folder / f"ledger-{count}")]
    return results


def _run_dag(airflow: LocalAirflow, dag_id: str, folder: Path, ledger: Path) -> Cost:
    cpu = _cpu(airflow)
    run_id = airflow.trigger_dag(dag_id, conf={"folder": str(folder), "ledger": str(ledger)})
    if airflow.wait_for_run(dag_id, run_id, timeout=1800) != "success":
        raise RuntimeError(f"{dag_id} failed: {airflow.task_instances(dag_id, run_id)}")
    cpu = _cpu(airflow) - cpu
    run = airflow.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}").json()
    begin, end = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
    return Cost((end - begin).total_seconds(), cpu)


def _cpu(airflow: LocalAirflow) -> float:
    """Return the processor time of all processes of an Airflow, including those that have ended."""
    seconds = 0.0
    for pid in airflow.pids():
        # A process that ends meanwhile is counted in its parent.
        with suppress(psutil.NoSuchProcess):
            seconds += sum(psutil.Process(pid).cpu_times()[:4])
    return seconds


def _large(
    scratch: Scratch, serve: Callable[[Scratch], AbstractContextManager[Server]], name: str, say: Callable[[str], None]
) -> Results:
    folder = scratch.folder / "large"
    folder.mkdir()
    files = [folder / f"{number}.mp4" for number in range(_LARGE_FILES)]
    for file in files:
        with file.open("wb") as writer:
            writer.truncate(_LARGE)
    results: Results = {OURS: [], CURL: []}
    with serve(scratch) as server:
        for number in range(_ROUNDS):
            say(f"batch: large files, {name}, round {number + 1} of {_ROUNDS}")
            for client in random.sample(list(results), len(results)):
                results[client].append(_curl(server, files) if client == CURL else _operator(server, folder))
    shutil.rmtree(folder)
    return results


def _operator(server: Server, folder: Path) -> Cost:
    ledger = folder.parent / f"ledger-{uuid4()}"
    cost = run_client(module("batches", "operator", folder, ledger), server)
    return Cost(cost["wall"], cost["cpu"], cost["peak"] - cost["idle"])


def _curl(server: Server, files: list[Path]) -> Cost:
    """Open the uploads outside of the measurement, and send the files with several curls in parallel."""
    pairs = files[0].parent.parent / "pairs"
    with pairs.open("w") as writer:
        for file in files:
            asset = server.ask("/v1/assets", {"size_bytes": file.stat().st_size})
            print(file, server.url + urlsplit(asset["upload_url"]).path, file=writer)
    command = ["xargs", "--arg-file", str(pairs), "--max-procs", str(PARALLEL), "--max-args", "2", *curl_command()]
    cost = run_client([*SMALL, *command], server)
    return Cost(cost["wall"], cost["cpu"])


def _table(title: str, results: Results, reference: str) -> str:
    header = ["client", f"wall / {reference}", "CPU", "wall, s", "CPU, s", "memory over idle, MiB", "requests a file"]
    rows = [
        [
            name,
            *(Spread.of(_ratios(results, name, reference, what)).text() for what in ("wall", "cpu")),
            *(Spread.of([getattr(cost, what) for cost in costs]).text() for what in ("wall", "cpu")),
            f"{max(cost.growth for cost in costs) / MIB:.0f}" if costs[0].growth else "-",
            f"{max(cost.requests for cost in costs):.2f}" if costs[0].requests else "-",
        ]
        for name, costs in results.items()
    ]
    return table(f"{title}, {PARALLEL} at a time; median (least-most)", header, rows)


def _ratios(results: Results, name: str, reference: str, what: str) -> list[float]:
    """Return a client's values relative to those of another one in the same round."""
    value = attrgetter(what)
    return [value(one) / value(other) for one, other in zip(results[name], results[reference], strict=True)]


def _targets(small: Results, most: Cost, on_airflow: dict[int, Results], large: dict[str, Results]) -> Iterator[Target]:
    yield Target("requests a file, 1,000 files", 2.2, max(cost.requests for cost in small[OURS]))
    for what in ("wall", "cpu"):
        ratio = Spread.of(_ratios(small, OURS, SCRIPT, what)).median
        yield Target(f"{what} of a script's, 1,000 files", 1.15, ratio)
    growth = max(cost.growth for cost in small[OURS]) / MIB
    yield Target("MiB over an idle task, 1,000 files", 60, growth)
    yield Target(f"MiB more, {_MAX_FILES:,} files", 40, most.growth / MIB - growth)
    [mapped], [ours] = on_airflow[100][MAPPED], on_airflow[1000][ONE_TASK]
    for what, times in (("wall", 12), ("cpu", 20)):
        value = attrgetter(what)
        yield Target(f"{what} of mapped tasks', 1,000 files", round(1 / times, 3), value(ours) / (10 * value(mapped)))
    for name, results in large.items():
        ratio = Spread.of(_ratios(results, OURS, CURL, "wall")).median
        yield Target(f"wall of curl's, {_LARGE_TITLE}, {name}", 1.05, ratio)
