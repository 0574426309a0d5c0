"""The outputs of many recordings: in one task and with mapped tasks on a real Airflow, and by a hand-written script.

``python -m benchmarks.produce [COUNT] [MANY]``: how many recordings to compare with (default: 100), and how many to
measure the memory with (default: 1,000; 0 for not at all).
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx
import psutil

from benchmarks.batches import PARALLEL
from benchmarks.measure import MIB, Target, table
from benchmarks.processes import ROOT
from benchmarks.servers import KEY, Scratch, Server, emulated
from harness.airflow import LocalAirflow
from harness.media import make_audio

#: How many recordings are produced, and how many at once to measure memory.
_COUNT, _MANY = 100, 1000
#: How long a cut or a render takes at least, in seconds.
_WORK = "seconds=2"
#: Seconds between two polls.
_POLL = 5.0

ONE_TASK, MAPPED, SCRIPT = "one task", "mapped tasks", "a hand-written script"


@dataclass(frozen=True)
class Cost:
    """The cost of a batch.

    :param wall: Elapsed seconds.
    :param cpu: Seconds of processor time of all processes of Airflow; 0 for the script.
    :param requests: Requests, by method and kind of resource.
    """

    wall: float
    cpu: float
    requests: Counter[str]


def run(
    scratch: Scratch, *, say: Callable[[str], None], count: int = _COUNT, many: int = _MANY
) -> tuple[list[str], list[Target]]:
    """Measure the ways side by side, and the memory of many recordings at once.

    :param scratch: The folder for files.
    :param say: Called with lines about the progress.
    :param count: How many recordings to compare with.
    :param many: How many recordings to measure memory with; 0 for not at all.
    :returns: Tables and targets.
    """
    costs: dict[str, Cost] = {}
    tables: list[str] = []
    targets: list[Target] = []
    with emulated(scratch, "roughy-produce", progression="immediate") as server:
        connections = {"roughy_default": server.connection}
        settings = {"CORE__PARALLELISM": str(PARALLEL)}
        with LocalAirflow([ROOT / "benchmarks" / "dags"], connections=connections, settings=settings) as airflow:
            for name, dag_id in ((ONE_TASK, "produce_in_one_task"), (MAPPED, "produce_mapped")):
                say(f"produce: {count:,} recordings, {name}")
                costs[name] = _run_dag(airflow, server, scratch, dag_id, _upload(server, scratch, count))
            say(f"produce: {count:,} recordings, {SCRIPT}")
            costs[SCRIPT] = _script(server, scratch, _upload(server, scratch, count))
            if many:
                say(f"produce: {many:,} recordings at once")
                tables.append(_memory(airflow, server, scratch, many, targets))
    rows = [
        [
            name,
            f"{cost.wall:.1f}",
            f"{cost.cpu:.1f}" if cost.cpu else "-",
            f"{cost.requests.total() / count:.2f}",
        ]
        for name, cost in costs.items()
    ]
    title = f"{count:,} recordings: captions, timeline, render, download; {PARALLEL} at a time"
    tables.insert(0, table(title, ["way", "wall, s", "CPU of Airflow, s", "requests a recording"], rows))
    one, mapped, script = costs[ONE_TASK], costs[MAPPED], costs[SCRIPT]
    targets.insert(0, Target(f"wall of mapped tasks', {count:,} recordings", 1 / 10, one.wall / mapped.wall))
    targets.insert(1, Target(f"CPU of mapped tasks', {count:,} recordings", 1 / 15, one.cpu / mapped.cpu))
    ratio = one.requests.total() / script.requests.total()
    targets.insert(2, Target(f"requests of a script's, {count:,} recordings", 1.3, ratio))
    for name, cost in costs.items():
        say(f"produce: requests of {name}: {dict(cost.requests.most_common())}")
    return tables, targets


def _upload(server: Server, scratch: Scratch, count: int) -> list[str]:
    """Upload short recordings, and return the ids of their assets."""
    content = make_audio(scratch.folder / "short.mp3", seconds=1).read_bytes()
    _set_progression(server, "immediate")
    head = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    ids = []
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        for number in range(count):
            data = content + number.to_bytes(4, "big")
            fields = {"project_id": server.project_id, "size_bytes": len(data)}
            asset = client.post("/v1/assets", json=fields).raise_for_status().json()
            client.patch(asset["upload_url"], content=data, headers=head).raise_for_status()
            ids.append(asset["id"])
        while client.get("/v1/assets", params={"state": "processing"}).json()["total"]:
            time.sleep(0.2)
    _set_progression(server, _WORK)
    return ids


def _set_progression(server: Server, progression: str) -> None:
    body = {"progression": progression}
    httpx.put(f"{server.url}/_emulator/progression", json=body, trust_env=False).raise_for_status()


def _requests(server: Server) -> Counter[str]:
    names = (f"{each['method']} {'/'.join(each['path'].split('/')[1:3])}" for each in server.ask("/_emulator/requests"))
    return Counter(names)


def _run_dag(airflow: LocalAirflow, server: Server, scratch: Scratch, dag_id: str, ids: list[str]) -> Cost:
    file, target = scratch.folder / f"{dag_id}-{ids[0]}.json", scratch.folder / f"{dag_id}-{ids[0]}"
    file.write_text(json.dumps(ids))
    before, cpu = _requests(server), _cpu(airflow)
    run_id = airflow.trigger_dag(dag_id, conf={"file": str(file), "target": str(target)})
    if airflow.wait_for_run(dag_id, run_id, timeout=3600) != "success":
        raise RuntimeError(f"{dag_id} failed: {airflow.task_instances(dag_id, run_id)}")
    cpu = _cpu(airflow) - cpu
    found = airflow.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}").json()
    begin, end = (datetime.fromisoformat(found[name]) for name in ("start_date", "end_date"))
    files = [path for path in target.rglob("*") if path.is_file()]
    if len(files) != 3 * len(ids):
        raise RuntimeError(f"{len(files)} files of {len(ids)} recordings")
    return Cost((end - begin).total_seconds(), cpu, _requests(server) - before)


def _cpu(airflow: LocalAirflow) -> float:
    """Return the processor time of all processes of an Airflow, including those that have ended."""
    seconds = 0.0
    for pid in airflow.pids():
        # A process that ends meanwhile is counted in its parent.
        with suppress(psutil.NoSuchProcess):
            seconds += sum(psutil.Process(pid).cpu_times()[:4])
    return seconds


def _script(server: Server, scratch: Scratch, ids: list[str]) -> Cost:
    """Do the same by hand: the requests that nobody can save, and a ``GET`` a poll."""
    target = scratch.folder / "script"
    target.mkdir()

    async def done(client: httpx.AsyncClient, path: str) -> dict[str, str]:
        while True:
            found: dict[str, str] = (await client.get(path)).raise_for_status().json()
            if found["state"] == "completed":
                return found
            await asyncio.sleep(_POLL)

    async def one(client: httpx.AsyncClient, storage: httpx.AsyncClient, at_once: asyncio.Semaphore, id: str) -> None:
        async with at_once:
            cut = (await client.post("/v1/cuts", json={"asset_id": id})).raise_for_status().json()["id"]
        await asyncio.sleep(_POLL)
        await done(client, f"/v1/cuts/{cut}")
        async with at_once:
            body = {"asset_id": id, "cut_id": cut, "output": {"format": "m4a"}}
            render = (await client.post("/v1/renders", json=body)).raise_for_status().json()["id"]
            captions, timeline = {"format": "srt"}, {"format": "fcpxml", "frame_rate": "25"}
            for path, query in (("subtitle/export", captions), ("export", timeline)):
                reply = await client.get(f"/v1/cuts/{cut}/{path}", params=query)
                (target / f"{id}-{query['format']}").write_bytes(reply.raise_for_status().content)
        await asyncio.sleep(_POLL)
        link = (await done(client, f"/v1/renders/{render}"))["download_url"]
        async with at_once:
            (target / f"{id}.m4a").write_bytes((await storage.get(link)).raise_for_status().content)

    async def work() -> None:
        at_once = asyncio.Semaphore(PARALLEL)
        headers = {"Authorization": f"Bearer {KEY}"}
        # The storage must not see the key.
        async with (
            httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client,
            httpx.AsyncClient(timeout=60) as storage,
        ):
            await asyncio.gather(*(one(client, storage, at_once, id) for id in ids))

    before, started = _requests(server), time.monotonic()
    asyncio.run(work())
    return Cost(time.monotonic() - started, 0.0, _requests(server) - before)


def _memory(airflow: LocalAirflow, server: Server, scratch: Scratch, many: int, targets: list[Target]) -> str:
    """Produce many recordings at once, and return a table of the memory of Airflow's processes."""
    ids = _upload(server, scratch, many)
    few = _upload(server, scratch, 10)
    peaks = {}
    for name, chosen in ((f"{len(few)}", few), (f"{many:,}", ids)):
        with _peaks(airflow) as found:
            cost = _run_dag(airflow, server, scratch, "produce_in_one_task", chosen)
        peaks[name] = (found, cost, len(chosen))
    rows = [
        [
            name,
            f"{found['task'] / MIB:.0f}",
            f"{found['triggerer'] / MIB:.0f}",
            f"{cost.wall:.0f}",
            f"{cost.cpu:.0f}",
            f"{cost.requests.total() / number:.2f}",
        ]
        for name, (found, cost, number) in peaks.items()
    ]
    (low, _, _), (high, _, _) = peaks.values()
    for part in ("task", "triggerer"):
        growth = (high[part] - low[part]) / MIB
        targets.append(Target(f"MiB more in the {part}, {many:,} recordings", 40, growth))
    header = ["recordings", "task, MiB", "triggerer, MiB", "wall, s", "CPU, s", "requests a recording"]
    return table("memory of the largest process, one task", header, rows)


@contextmanager
def _peaks(airflow: LocalAirflow) -> Iterator[dict[str, int]]:
    """Sample the resident memory of the largest process of the triggerer, and of all tasks."""
    peaks = {"task": 0, "triggerer": 0}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.2):
            for name, component in (("task", "scheduler"), ("triggerer", "triggerer")):
                for pid in airflow.pids(component):  # type: ignore[arg-type]
                    with suppress(psutil.Error):
                        process = psutil.Process(pid)
                        # The scheduler itself is no task.
                        if name == "task" and "scheduler" in process.cmdline():
                            continue
                        peaks[name] = max(peaks[name], process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def main() -> None:
    """Measure, and print tables and targets."""
    count, many = (int(each) for each in (*sys.argv[1:], *map(str, (_COUNT, _MANY)[len(sys.argv) - 1 :])))
    with tempfile.TemporaryDirectory(prefix="roughy-benchmark-") as folder:
        tables, targets = run(
            Scratch(Path(folder)), say=lambda line: print(line, file=sys.stderr, flush=True), count=count, many=many
        )
    print("\n".join(tables))
    print(table("targets", ["promise", "at most", "measured", ""], (target.row for target in targets)))


if __name__ == "__main__":
    main()
