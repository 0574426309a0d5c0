"""An archive of many small files over many workers: a plan, and shards that are killed at random.

``python -m benchmarks.backlog`` runs all parts with 2,000 files. Each part prints its table when it ends::

    python -m benchmarks.backlog --only kills --files 100000          # about an hour on two cores
    python -m benchmarks.backlog --only kills --files 20000 --storage s3
    python -m benchmarks.backlog --only speed                         # 1, 2, 4, 8 shards, replies after 50 ms

Every file is a recording of its own of about a kilobyte. The emulator stores what it gets and judges the result: each
file once, whole. Files and state need about 8 KB of disk a recording, in a temporary folder that is removed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_roughy.observability.report import read_report
from benchmarks.measure import MIB, Target, table
from benchmarks.processes import ROOT, module, serving
from benchmarks.servers import Scratch, Server, emulated
from benchmarks.shards import COUNTED, Counts

PARTS = ("kills", "speed", "restart")
#: Files of one folder.
_A_FOLDER = 1000
#: The time after which the slow service replies, in seconds; files for each shard in that part.
_REPLY_SECONDS, _FILES_A_SHARD = 0.05, 300
#: Free bytes that a run leaves on the disk.
_FREE_BYTES = 2 * 1024**3
_BYTES_A_FILE = 8 * 1024


@dataclass
class Worker:
    """One shard, with all its tries.

    :param number: Its number.
    :param counts: The file of its counts.
    :param job: The file of its job.
    """

    number: int
    counts: Path
    job: Path
    process: subprocess.Popen[str] | None = None
    kills: int = 0
    #: What its last try printed.
    cost: dict[str, Any] = field(default_factory=dict)
    cpu: float = 0.0

    def start(self, server: Server) -> None:
        """Start a try."""
        command = module("shards", "shard", self.job, str(self.number), self.counts)
        log = self.job.with_name(f"shard-{self.number}.log").open("a")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=server.environment, stdout=subprocess.PIPE, stderr=log, text=True
        )

    def ended(self) -> bool:
        """Return whether its try has ended; raise an error if it has failed."""
        if self.process is None or self.process.poll() is None:
            return self.process is None
        output = self.process.communicate()[0]
        code, self.process = self.process.returncode, None
        if code == 0:
            self.cost = json.loads(output.splitlines()[-1])
            return True
        raise RuntimeError(f"shard {self.number} ended with {code}: {output[-2000:]}; see {self.job.parent}")

    def kill(self) -> None:
        """Kill its try without a warning."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
            self.kills += 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def make_files(folder: Path, count: int) -> dict[str, str]:
    """Write so many recordings of silence; return the SHA-256 of each, by its path in the folder."""
    digests = {}
    for number in range(count):
        inner = folder / f"{number // _A_FOLDER:04}"
        inner.mkdir(parents=True, exist_ok=True)
        content = _silence(number)
        path = inner / f"{number:07}.wav"
        path.write_bytes(content)
        digests[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return digests


def _silence(number: int) -> bytes:
    """Return a WAV file of half a kilobyte, whose samples are its number."""
    samples = struct.pack("<Q", number) * 50
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8,
                       b"data", len(samples))  # fmt: skip
    return head + samples


@contextmanager
def _archive(
    scratch: Scratch, storage: str, count: int
) -> Iterator[tuple[dict[str, Any], dict[str, str], dict[str, str]]]:
    """Yield the locations of an archive, the digests of its files, and more of the environment."""
    folder = scratch.folder / "archive"
    digests = make_files(folder, count)
    if storage == "local":
        home = scratch.folder / "home"
        home.mkdir()
        yield {"source": str(folder), "ledger": f"{home}/ledger", "manifest": f"{home}/plan.jsonl"}, digests, {}
        shutil.rmtree(home)
    else:
        import boto3

        with serving(module("s3")) as port:
            url = f"http://127.0.0.1:{port}"
            login = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
            client = boto3.client("s3", endpoint_url=url, **login)
            client.create_bucket(Bucket="archive")
            for name in digests:
                client.put_object(Bucket="archive", Key=name, Body=(folder / name).read_bytes())
            extra = {"endpoint_url": url, "region_name": "us-east-1"}
            connection = {"conn_type": "aws", "login": "key", "password": "secret", "extra": extra}
            places = {
                "source": "s3://s3@archive/",
                "ledger": "s3://s3@out/ledger",
                "manifest": "s3://s3@out/plan.jsonl",
            }
            yield places, digests, {"AIRFLOW_CONN_S3": json.dumps(connection)}
    shutil.rmtree(folder)


def _jobs(scratch: Scratch, places: dict[str, Any], shards: int, parallel: int) -> Path:
    job = scratch.folder / f"job-{shards}.json"
    plan = {**places, "recursive": True, "shards": shards}
    shard = {"source": places["manifest"], "shards": shards, "parallel": parallel, "poll_interval": 1.0}
    job.write_text(json.dumps({"plan": plan, "shard": shard}))
    return job


def _plan(job: Path, server: Server) -> dict[str, Any]:
    done = subprocess.run(
        module("shards", "plan", job), cwd=ROOT, env=server.environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the plan failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    plan: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return plan


def _ingest(
    job: Path, server: Server, shards: int, *, kills: int = 0, dead: int = 0, every: float = 5.0
) -> tuple[list[Worker], float, float]:
    """Run all shards; kill workers at random, and start each again, but for the dead ones.

    :returns: The workers, the seconds from the first start to the last end, and those of processor time.
    """
    workers = [Worker(n, job.with_name(f"counts-{shards}-{n}"), job) for n in range(shards)]
    import resource

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    started, cpu_before = time.monotonic(), cpu()
    for worker in workers:
        worker.start(server)
    left, buried, next_kill = kills, 0, time.monotonic() + random.uniform(0.5, 1.5) * every
    running = list(workers)
    while running:
        time.sleep(0.2)
        running = [worker for worker in running if not worker.ended()]
        if left and running and time.monotonic() >= next_kill:
            victim = random.choice(running)
            victim.kill()
            left -= 1
            next_kill = time.monotonic() + random.uniform(0.5, 1.5) * every
            # The last kills are final.
            if left < dead - buried:
                buried += 1
                running.remove(victim)
            else:
                victim.start(server)
    return workers, time.monotonic() - started, cpu() - cpu_before


def _total(workers: list[Worker]) -> Counter[str]:
    total: Counter[str] = Counter()
    for worker in workers:
        total.update(Counts(worker.counts).to_dict())
    return total


def _judge(server: Server, digests: dict[str, str], results: Path | None) -> list[str]:
    """Return what went wrong: judged by the emulator's own list, and by the results of the shards."""
    problems = []
    assets = server.ask("/_emulator/assets")
    arrived = Counter(asset["sha256"] for asset in assets if asset["state"] == "ready")
    with_bytes = [asset for asset in assets if asset["stored_bytes"]]
    wanted = Counter(digests.values())
    for name, found in (("missing", wanted - arrived), ("twice or foreign", arrived - wanted)):
        if found:
            problems.append(f"{found.total():,} {name}")
    if len(with_bytes) != len(wanted):
        problems.append(f"{len(with_bytes):,} assets have bytes, of {len(wanted):,} recordings")
    if results is not None:
        reported = Counter(row.source for row in read_report(results) if row.status == "ready")
        if twice := [source for source, number in reported.items() if number > 1]:
            problems.append(f"{len(twice):,} are reported twice")
        if len(reported) != len(digests):
            problems.append(f"{len(reported):,} of {len(digests):,} are reported")
    return problems


def kills(scratch: Scratch, arguments: argparse.Namespace) -> tuple[list[str], list[Target]]:
    """Ingest an archive by workers that are killed at random."""
    count, shards = arguments.files, arguments.shards
    with ExitStack() as stack:
        places, digests, more = stack.enter_context(_archive(scratch, arguments.storage, count))
        server = stack.enter_context(emulated(scratch, "roughy", progression="immediate"))
        server = Server(server.url, scratch, server.folder, more=more, project_id=server.project_id)
        job = _jobs(scratch, places, shards, arguments.parallel)
        _say(f"backlog: planning {count:,} files ({arguments.storage})")
        plan = _plan(job, server)
        _say(f"backlog: planned in {plan['wall']:.1f} s; {shards} shards, {arguments.kills} kills")
        workers, wall, cpu = _ingest(
            job, server, shards, kills=arguments.kills, dead=arguments.dead, every=arguments.every
        )
        total = _total(workers)
        results = scratch.folder / "home" / "plan-results" if arguments.storage == "local" else None
        problems = _judge(server, digests, results)
        _say("backlog: planning again, of an archive that is done")
        again = _plan(job, server)
    peaks = [(worker.cost["peak"] - worker.cost["idle"]) / MIB for worker in workers if worker.cost]
    rows = [
        ["files", f"{count:,}"],
        ["workers killed, of them for good", f"{sum(w.kills for w in workers)}, {sum(not w.cost for w in workers)}"],
        ["plan: wall and processor seconds", f"{plan['wall']:.1f}, {plan['cpu']:.1f}"],
        ["plan: MiB over an idle task", f"{(plan['peak'] - plan['idle']) / MIB:.0f}"],
        ["shards: wall and processor seconds", f"{wall:.1f}, {cpu:.1f}"],
        ["shards: processor milliseconds a file", f"{1000 * cpu / count:.1f}"],
        ["shards: MiB over an idle task, the most", f"{max(peaks):.0f}"],
        [
            "bytes of XComs, plan and a shard",
            f"{plan['xcom_bytes']:,}, {max(w.cost.get('xcom_bytes', 0) for w in workers):,}",
        ],
        ["requests to the service a file", f"{total['requests'] / count:.2f}"],
        *(
            [f"ledger: {name} a file", f"{total[name] / count:.3f}"]
            for name in COUNTED
            if name not in ("lost", "requests")
        ),
        ["failed creates a file", f"{total['lost'] / count:.4f}"],
        ["a second plan: wall seconds, planned", f"{again['wall']:.1f}, {again['counts']['planned']}"],
        ["judgement", "; ".join(problems) or "each file once, whole, reported once"],
    ]
    title = f"{count:,} files, {arguments.storage}, {shards} shards, {arguments.parallel} uploads each"
    targets = [
        Target("recordings missing, doubled or not reported", 0, len(problems)),
        Target("failed creates, of 100 files", 5, 100 * total["lost"] / count),
        Target("MiB over an idle task, plan", 150, (plan["peak"] - plan["idle"]) / MIB),
        Target("MiB over an idle task, shard", 150, max(peaks)),
    ]
    return [table(title, ["", "measured"], rows)], targets


def speed(scratch: Scratch, arguments: argparse.Namespace) -> tuple[list[str], list[Target]]:
    """Ingest the same archive by 1, 2, 4 and 8 shards, at a service that replies after 50 ms."""
    walls: dict[int, float] = {}
    count = 8 * _FILES_A_SHARD
    rows = []
    for shards in (1, 2, 4, 8):
        with (
            _archive(scratch, "local", count) as (places, _, _),
            serving(module("remote", str(_REPLY_SECONDS))) as port,
        ):
            server = Server(f"http://127.0.0.1:{port}", scratch)
            job = _jobs(scratch, places, shards, 1)
            _plan(job, server)
            workers, wall, cpu = _ingest(job, server, shards)
            # Without the start of the processes, which Airflow does in any case.
            walls[shards] = max(worker.cost["wall"] for worker in workers)
            total = _total(workers)
            for worker in workers:
                worker.counts.unlink()
            _say(f"backlog: {shards} shards, {walls[shards]:.1f} s")
            rows.append(
                [
                    str(shards),
                    f"{walls[shards]:.1f}",
                    f"{walls[1] / walls[shards]:.2f}",
                    f"{wall:.1f}",
                    f"{cpu:.1f}",
                    str(total["lost"]),
                ]
            )
    header = ["shards", "wall, s", "speed-up", "wall with start, s", "CPU, s", "failed creates"]
    title = f"{count} files, one upload at a time each, replies after {1000 * _REPLY_SECONDS:.0f} ms"
    # A target is a most: a seventh of the wall time.
    return [table(title, header, rows)], [Target("wall of 8 shards, of 1 shard's", 1 / 7, walls[8] / walls[1])]


def restart(scratch: Scratch, arguments: argparse.Namespace) -> tuple[list[str], list[Target]]:
    """Kill all shards half way and start them again: what a restart costs before the first new byte."""
    count, shards = arguments.files, arguments.shards
    with ExitStack() as stack:
        places, _, more = stack.enter_context(_archive(scratch, arguments.storage, count))
        server = stack.enter_context(emulated(scratch, "roughy", progression="immediate"))
        server = Server(server.url, scratch, server.folder, more=more, project_id=server.project_id)
        job = _jobs(scratch, places, shards, arguments.parallel)
        _plan(job, server)
        _ingest(job, server, shards)
        before = _total([Worker(n, job.with_name(f"counts-{shards}-{n}"), job) for n in range(shards)])
        # Nothing is left to upload: all that this run asks is the cost of a restart.
        workers, wall, cpu = _ingest(job, server, shards)
        more_asked = _total(workers) - before
    rows = [
        ["files, all of them done", f"{count:,}"],
        ["wall and processor seconds of all shards", f"{wall:.1f}, {cpu:.1f}"],
        ["wall seconds of a shard, without its start", f"{max(w.cost['wall'] for w in workers):.1f}"],
        *([f"{name}, all shards", f"{more_asked[name]:,}"] for name in COUNTED),
    ]
    return [table(f"a restart of {shards} shards, {count:,} files, {arguments.storage}", ["", "measured"], rows)], []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backlog", description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=2000, help="files of the archive (default: 2,000)")
    parser.add_argument("--shards", type=int, default=8, help="shards, each a process (default: 8)")
    parser.add_argument("--parallel", type=int, default=2, help="uploads of a shard at a time (default: 2)")
    parser.add_argument("--kills", type=int, default=10, help="how often a worker is killed (default: 10)")
    parser.add_argument("--dead", type=int, default=1, help="how many of those are not started again (default: 1)")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two kills (default: 4)")
    parser.add_argument("--storage", choices=("local", "s3"), default="local", help="where files and ledger are")
    parser.add_argument("--seed", type=int, help="of the random kills")
    parser.add_argument("--folder", help="where the temporary folder is created (default: the system's)")
    parser.add_argument("--only", choices=PARTS, action="append", help=f"one of {', '.join(PARTS)}")
    return parser.parse_args()


def main() -> None:
    """Measure what the arguments ask for."""
    arguments = _arguments()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    random.seed(seed)
    needed = _FREE_BYTES + _BYTES_A_FILE * arguments.files
    targets: list[Target] = []
    parts = {"kills": kills, "speed": speed, "restart": restart}
    for name in arguments.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="backlog-", dir=arguments.folder) as folder:
            if shutil.disk_usage(folder).free < needed:
                sys.exit(f"{folder} has less than {needed / 1024**3:.1f} GiB free: give another --folder")
            tables, more = parts[name](Scratch(Path(folder)), arguments)
        targets += more
        print("\n".join(tables), flush=True)
    print(f"seed {seed}\n")
    print(table("targets", ["promise", "at most", "measured", ""], [target.row for target in targets]))
    if any(target.value > target.limit for target in targets):
        sys.exit(1)


if __name__ == "__main__":
    main()
