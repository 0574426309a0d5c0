"""Whole uploads by several clients, compared with curl; and the race, which downloads use as well."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from benchmarks.clients import CURL, OURS, Client, available, left_out
from benchmarks.measure import MIB, Sample, Spread, Target, table
from benchmarks.servers import Scratch, Server, distant_sink, reference_server, sink, tls_sink
from harness.npm import has_node


@dataclass(frozen=True)
class Case:
    """A server to upload to.

    :param title: Its name in tables.
    :param serve: Runs it.
    :param with_tls: Whether bytes are encrypted.
    :param needs_node: Whether it is a Node program.
    """

    title: str
    serve: Callable[[Scratch], AbstractContextManager[Server]]
    with_tls: bool = False
    needs_node: bool = False


CASES = {
    "sink": Case("raw sink", sink),
    "tls": Case("sink over TLS", tls_sink, with_tls=True),
    "node": Case("@tus/server", reference_server, needs_node=True),
    "distant": Case("sink over TLS, 20 ms each way", distant_sink, with_tls=True),
}

#: Samples by client and round.
Results = dict[str, dict[int, Sample]]


def run(
    names: Sequence[str], scratch: Scratch, *, size: int, rounds: int, peer_rounds: int, say: Callable[[str], None]
) -> tuple[list[str], list[Target]]:
    """Measure some of :data:`CASES`.

    Every round has all cases and clients, in a different order each time.

    :param names: The names of the cases.
    :param scratch: The folder for files.
    :param size: Bytes of an upload.
    :param rounds: The number of rounds.
    :param peer_rounds: In how many of the rounds clients without a target run as well.
    :param say: Called with lines about the progress.
    :returns: Tables and targets.
    """
    clients = available()
    cases = {name: CASES[name] for name in names if has_node() or not CASES[name].needs_node}
    file = scratch.source(size)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(case.serve(scratch)) for name, case in cases.items()}
        results = race(servers, clients, file, rounds=rounds, peer_rounds=peer_rounds, say=say)
    tables = [*left_out(), *(race_table(cases[name].title, size, results[name]) for name in cases)]
    return tables, list(_targets(cases, results)) if CURL in clients else []


def race(
    servers: Mapping[str, Server],
    clients: Mapping[str, Client],
    file: Path,
    *,
    rounds: int,
    peer_rounds: int,
    say: Callable[[str], None],
) -> dict[str, Results]:
    """Let all clients transfer a file with all servers, in a different order each round.

    :param servers: By the name of their case.
    :param clients: By name.
    :param file: The file.
    :param rounds: The number of rounds.
    :param peer_rounds: In how many of the rounds clients without a target run as well.
    :param say: Called with lines about the progress.
    :returns: Results by case.
    """
    results: dict[str, Results] = {name: {client: {} for client in clients} for name in servers}
    for number in range(rounds):
        say(f"transfer: round {number + 1} of {rounds}")
        chosen = [name for name in clients if name in (OURS, CURL) or _falls_on(number, peer_rounds, rounds)]
        for case, client in _shuffled(servers, chosen):
            results[case][client][number] = clients[client](servers[case], file)
            servers[case].clear()
    return results


def _falls_on(number: int, times: int, rounds: int) -> bool:
    """Return whether something done so many times, spread evenly over the rounds, is done in this round."""
    return (number * times) % rounds < times


def _shuffled(servers: Mapping[str, Server], clients: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of case and client; those of a case are consecutive, and so measured in the same minute."""
    for case in random.sample(list(servers), len(servers)):
        for client in random.sample(clients, len(clients)):
            yield case, client


def race_table(title: str, size: int, results: Results) -> str:
    """Return the table of one case."""
    header = ["client", "wall / curl", "CPU / curl", "wall, s", "CPU, s", "peak, MiB", "rounds"]
    rows = [
        [
            client,
            *(_text(ratios(results, client, what)) for what in ("wall", "cpu")),
            *(_text([getattr(sample, what) for sample in samples.values()]) for what in ("wall", "cpu")),
            f"{Spread.of([sample.peak for sample in samples.values()]).median / MIB:.0f}",
            str(len(samples)),
        ]
        for client, samples in results.items()
        if samples
    ]
    return table(f"{title}: {size / MIB:g} MiB; median (least-most); ratios to curl in the same round", header, rows)


def _text(values: Sequence[float]) -> str:
    return Spread.of(values).text() if values else "-"


def ratios(results: Results, client: str, what: str) -> list[float]:
    """Return a client's values relative to curl's of the same round, for rounds with curl.

    :param what: ``"wall"`` or ``"cpu"``.
    """
    value = attrgetter(what)
    curl = results.get(CURL, {})
    return [value(sample) / value(curl[number]) for number, sample in results[client].items() if number in curl]


def _targets(cases: Mapping[str, Case], results: Mapping[str, Results]) -> Iterator[Target]:
    for name, case in cases.items():
        yield Target(f"wall time in curl's, {case.title}", 1.1, Spread.of(ratios(results[name], OURS, "wall")).median)
    for name, case in cases.items():
        if case.with_tls:
            yield Target(f"CPU in curl's, {case.title}", 1.5, Spread.of(ratios(results[name], OURS, "cpu")).median)
