"""Metrics: what is recorded, and what Airflow's Stats sends of it by StatsD and OpenTelemetry."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_roughy import instruments
from airflow_provider_roughy.compat import AIRFLOW_VERSION
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ingest.result import Status
from airflow_provider_roughy.instruments import INSTRUMENTS, Instrument
from airflow_provider_roughy.lifecycle import KINDS, Outcome
from airflow_provider_roughy.observability import metrics
from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from airflow_provider_roughy.sensors import RoughyAssetSensor
from airflow_provider_roughy.triggers import RoughyAssetsReadyTrigger
from tests.ingesting import Nights
from tests.running import run_task
from tests.test_backlog import COUNT, SHARDS, Backlog
from tests.test_backlog import backlog as backlog
from tests.watching import INTERVAL, Watching, begun, rounds

ROOT = Path(__file__).parent.parent


class Recorded:
    """The values that instruments have recorded."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, tuple[str, ...]]] = []

    def __call__(self, instrument: Instrument, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == tuple(instrument.tags), "each tag, in the order of the vocabulary"
        for tag, values in instrument.tags.items():
            assert tags[tag] in values, (instrument.name, tag, tags[tag])
        self.values.append((instrument.name, value, tuple(tags.values())))

    def sums(self, name: str) -> dict[str, float]:
        """Return the sums of a metric, by the values of its tags."""
        sums: Counter[str] = Counter()
        for each, value, tags in self.values:
            if each == f"roughy.{name}":
                sums[".".join(tags)] += value  # type: ignore[assignment]
        return dict(sums)

    def count(self, name: str) -> dict[str, int]:
        """Return how many values of a metric were recorded, likewise."""
        return dict(Counter(".".join(tags) for each, _, tags in self.values if each == f"roughy.{name}"))


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    recorded = Recorded()
    instruments.send_to(recorded)
    yield recorded
    instruments.send_to(None)


# ---- What is recorded


def test_batch_records_files_bytes_credits_and_requests(
    roughy: Emulator, nights: Nights, folder: Path, recorded: Recorded
) -> None:
    size = sum(file.stat().st_size for file in folder.iterdir())
    (folder / "text.mp3").write_text("neither audio nor video. " * 100)
    nights.run(on_failed="return")
    assert recorded.sums("files") == {"ready": 3, "rejected": 1}
    assert recorded.sums("credits") == {"ready": 3}
    assert recorded.sums("bytes_uploaded")[""] == size + 2500
    assert recorded.count("upload_duration") == {"": 3}
    assert recorded.sums("requests")["2xx"] == sum((request.status or 500) < 300 for request in roughy.requests)
    nights.run(on_failed="return")
    assert recorded.sums("files") == {"ready": 3, "rejected": 1, "already_ingested": 4}
    assert recorded.sums("credits") == {"ready": 3}


def test_retry_does_not_count_results_of_earlier_tries_again(
    roughy: Emulator, nights: Nights, recorded: Recorded
) -> None:
    roughy.inject(Fault(method="POST", path="/v1/assets", nth=3, lose_reply=True))
    nights.run()
    assert recorded.sums("files") == {"ready": 2, "interrupted": 1}
    roughy.clear_faults()
    ended = nights.run(again=True)
    assert len(ended.result) == 3, "the retry reports all of them"
    assert recorded.sums("files") == {"ready": 3, "interrupted": 1}
    assert recorded.sums("credits") == {"ready": 3}


def test_unpaid_recordings_count_each_night_and_their_credits_once(
    roughy: Emulator, nights: Nights, recorded: Recorded
) -> None:
    roughy.progression = "manual"

    def spend() -> None:
        roughy.balance = 1
        roughy.settle()

    nights.run(deferrable=True, before_resuming=spend, on_pending_payment="return")
    nights.run(on_pending_payment="return")
    assert recorded.sums("files") == {"ready": 1, "pending_payment": 4, "already_ingested": 1}
    assert recorded.sums("credits") == {"ready": 1, "pending_payment": 2}


def test_shards_record_each_recording_once_over_all_tries(
    backlog: Backlog, roughy: Emulator, recorded: Recorded
) -> None:
    backlog.plan()
    for number in [*range(SHARDS), 1]:
        assert backlog.shard(number).state == "success"
    assert recorded.sums("files") == {"ready": COUNT}
    assert recorded.sums("credits") == {"ready": COUNT}


@pytest.mark.once
@pytest.mark.parametrize(
    ("fault", "reason", "status"),
    [
        ({"status": 429, "headers": {"Retry-After": "0"}}, "rate_limited", "429"),
        ({"status": 503}, "server_error", "5xx"),
        ({"drop": True}, "unreachable", "none"),
        ({"garbage": True}, "unexpected_reply", "2xx"),
        ({"status": 408}, "other", "4xx"),
    ],
)
def test_each_retry_has_a_reason_and_each_request_a_status(
    roughy: Emulator, hook: RoughyHook, recorded: Recorded, fault: dict[str, Any], reason: str, status: str
) -> None:
    roughy.inject(Fault(path="/v1/credits/balance", **fault))
    hook.get_credit_balance()
    assert recorded.sums("retries") == {reason: 1}
    assert recorded.sums("requests") == dict(Counter([status, "2xx"]))


def test_upload_and_download_count_bytes_that_are_sent_again(
    roughy: Emulator, hook: RoughyHook, recordings: dict[str, Path], tmp_path: Path, recorded: Recorded
) -> None:
    source = recordings["video"]
    roughy.inject(Fault(method="PATCH", lose_reply=True, nth=1, cut_after=5000))
    asset = hook.create_asset(None, source.stat().st_size)
    hook.upload(asset, source)
    assert recorded.sums("bytes_uploaded")[""] > source.stat().st_size
    assert recorded.sums("retries") == {"unreachable": 1}
    hook.download(tmp_path / "copy", asset_id=asset.id)
    assert recorded.sums("bytes_downloaded")[""] == source.stat().st_size
    assert recorded.count("download_duration") == {"": 1}


def test_upload_operator_records_its_file_and_its_credits(
    roughy: Emulator, recordings: dict[str, Path], recorded: Recorded
) -> None:
    task = RoughyCreateUploadOperator(task_id="upload", source=str(recordings["audio"]))
    run_task(task)
    assert recorded.sums("files") == {"uploaded": 1}
    waiting = RoughyCreateUploadOperator(
        task_id="upload", source=str(recordings["audio"]), wait_for_completion=True, poll_interval=0.1, timeout=30
    )
    run_task(waiting)
    assert recorded.sums("files") == {"uploaded": 1, "ready": 1}
    assert recorded.sums("credits") == {"ready": 1}
    assert recorded.sums("waits") == {"asset.succeeded": 1}


@pytest.mark.roughy(progression="manual")
@pytest.mark.parametrize("options", [{"deferrable": True}, {"mode": "poke"}, {"mode": "reschedule"}])
def test_wait_is_recorded_once_in_every_mode(
    roughy: Emulator, connection: object, recorded: Recorded, options: dict[str, Any]
) -> None:
    if options.get("mode") == "reschedule" and AIRFLOW_VERSION.startswith("2."):
        pytest.skip("Airflow 2 reads its database to reschedule")
    ready, failed = roughy.seed_asset(state="processing"), roughy.seed_asset(state="failed")

    for asset_id in (ready, failed):
        timer = threading.Timer(0.5, roughy.settle)
        timer.start()
        run_task(RoughyAssetSensor(task_id="wait", asset_id=asset_id, poke_interval=0.2, timeout=30, **options))
        timer.join()
    assert recorded.sums("waits") == {"asset.succeeded": 1, "asset.failed": 1}
    waited = recorded.sums("wait_duration")
    if options.get("mode") == "reschedule":
        assert waited == {}
    else:
        assert 0.2 < waited["asset"] < 20


@pytest.mark.skipif(AIRFLOW_VERSION.startswith("2."), reason="Airflow 2 has no event triggers")
def test_feed_lag_grows_while_lists_fail(roughy: Emulator, patient: None, tmp_path: Path, recorded: Recorded) -> None:
    async def run() -> None:
        watching = Watching(RoughyAssetsReadyTrigger(ledger=tmp_path / "taken", poll_interval=INTERVAL))
        await begun(tmp_path / "taken")
        await rounds(roughy, 3)
        before = recorded.count("feed_lag")[""]
        roughy.inject(Fault(path="/v1/assets", status=403, times=8))
        while recorded.count("feed_lag")[""] < before + 6:  # noqa: ASYNC110 - nobody sets an event.
            await asyncio.sleep(0.05)
        await watching.stop()

    asyncio.run(run())
    lags = [value for name, value, _ in recorded.values if name == "roughy.feed_lag"]
    assert all(lag >= 0 for lag in lags)
    assert max(lags) > 3 * INTERVAL


@pytest.mark.once
def test_vocabulary_lists_the_values_of_its_tags() -> None:
    by_name = {each.name: each for each in INSTRUMENTS}
    assert len(by_name) == len(INSTRUMENTS)
    assert {*instruments.FILES.tags["status"]} == {*Status, "already_ingested", "uploaded"}
    ends = {outcome.name.lower() for outcome in Outcome} - {"waiting"}
    assert {*instruments.WAITS.tags["outcome"]} == ends
    assert {*instruments.WAITS.tags["kind"]} == set(KINDS)
    declared = {each for each in vars(instruments).values() if isinstance(each, Instrument)}
    assert declared == set(INSTRUMENTS)


# ---- The documentation


@pytest.mark.once
def test_dashboard_and_alerts_use_metrics_and_tags_that_exist() -> None:
    dashboard = json.loads((ROOT / "docs/files/grafana-roughy.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    page = (ROOT / "docs/metrics.md").read_text().partition("## Alerts")[2].partition("\n## ")[0]
    alerts = [query.replace("\\|", "|") for query in re.findall(r"^\| .* \| `(.*)` \|$", page, re.MULTILINE)]
    assert len(alerts) > 5
    known = {f"airflow_{each.name}".replace(".", "_"): each for each in INSTRUMENTS}
    used = set()
    for query in queries + alerts:
        for name, part, labels in re.findall(r"\b(airflow_\w+?)(_sum|_count|)\b(\{[^}]*\})?", query):
            instrument = known[name]
            assert not part or instrument.type == "timer"
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', labels):
                assert (label == "quantile" and instrument.type == "timer") or (
                    set(values.split("|")) <= set(instrument.tags[label])
                ), query
            used.add(name)
        (by,) = re.findall(r" by \(([\w, ]+)\)", query)[:1] or [""]
        assert {*filter(None, by.split(", "))} <= {*instrument.tags, "quantile"}, query
    assert used == set(known)


@pytest.mark.once
def test_statsd_mapping_makes_labels_of_every_dotted_name() -> None:
    rules = yaml.safe_load((ROOT / "docs/files/statsd-mapping-roughy.yml").read_text())["mappings"]
    for instrument in INSTRUMENTS:
        for values in itertools.product(*instrument.tags.values()):
            name = ".".join(["airflow", instrument.name, *values])
            matches = [
                ({label: found[int(group[1:])] for label, group in rule["labels"].items()}, rule["name"])
                for rule in rules
                if (found := re.fullmatch(re.escape(rule["match"]).replace(r"\*", r"([^.]*)"), name))
            ]
            expected = (dict(zip(instrument.tags, values, strict=True)), f"airflow_{instrument.name}".replace(".", "_"))
            assert matches == ([expected] if instrument.tags else [])


# ---- What Airflow sends


def test_error_of_airflows_stats_fails_no_transfer_and_is_logged_once(
    roughy: Emulator, nights: Nights, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def fail(*args: Any, **options: Any) -> None:
                if args:
                    raise OSError(f"{name} failed")

            return fail

    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
    monkeypatch.setattr(metrics, "get_stats", Broken)
    metrics.stop()
    try:
        assert len(nights.run().result) == 3
    finally:
        metrics.stop()
    messages = [record.getMessage() for record in caplog.records if record.name == metrics.__name__]
    assert len(messages) == 1
    assert "failed; later errors are not logged: " in messages[0]


class StatsD:
    """A StatsD server: the datagrams that arrive at a socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.port = self._socket.getsockname()[1]

    def datagrams(self, prefix: str) -> list[str]:
        """Return the lines that have arrived and begin with a prefix."""
        lines = []
        self._socket.setblocking(False)
        while True:
            try:
                lines += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return [line for line in lines if line.startswith(prefix)]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def statsd() -> Iterator[StatsD]:
    pytest.importorskip("statsd")
    server = StatsD()
    yield server
    server.close()


def run_measured(folder: Path, tmp_path: Path, **environment: str) -> None:
    """Ingest a folder and download one file, in a process with Airflow's metrics on."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.measured", str(folder), str(tmp_path / "ledger"), str(tmp_path / "out")],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.roughy(progression="seconds=1")
def test_statsd_receives_the_metrics(
    roughy: Emulator, patient: None, folder: Path, tmp_path: Path, statsd: StatsD, monkeypatch: pytest.MonkeyPatch
) -> None:
    roughy.inject(Fault(method="POST", path="/v1/assets", status=429, headers={"Retry-After": "0"}))
    run_measured(
        folder,
        tmp_path,
        AIRFLOW__METRICS__STATSD_ON="True",
        AIRFLOW__METRICS__STATSD_HOST="127.0.0.1",
        AIRFLOW__METRICS__STATSD_PORT=str(statsd.port),
    )
    lines = statsd.datagrams("airflow.roughy.")
    assert {re.sub(r":[\d.]+", "", line) for line in lines} == {
        "airflow.roughy.bytes_downloaded|c",
        "airflow.roughy.bytes_uploaded|c",
        "airflow.roughy.credits.ready|c",
        "airflow.roughy.download_duration|ms",
        "airflow.roughy.files.ready|c",
        "airflow.roughy.poll_lag.asset|ms",
        "airflow.roughy.requests.2xx|c",
        "airflow.roughy.requests.429|c",
        "airflow.roughy.retries.rate_limited|c",
        "airflow.roughy.upload_duration|ms",
        "airflow.roughy.wait_duration.asset|ms",
        "airflow.roughy.waiters.asset|g",
        "airflow.roughy.waits.asset.succeeded|c",
    }
    assert {
        "airflow.roughy.files.ready:3|c",
        "airflow.roughy.credits.ready:3|c",
        "airflow.roughy.waits.asset.succeeded:3|c",
        "airflow.roughy.waiters.asset:3|g",
        "airflow.roughy.retries.rate_limited:1|c",
    } <= set(lines)
    (waited,) = re.findall(r"wait_duration\.asset:([\d.]+)", "\n".join(lines))
    assert 500 < float(waited) < 60_000, "milliseconds"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"statsd_influxdb_enabled": "True"}, "airflow.roughy.waits,kind=asset,outcome=succeeded:2|c"),
        ({"statsd_influxdb_enabled": "False"}, "airflow.roughy.waits.asset.succeeded:2|c"),
    ],
)
def test_statsd_with_tags_has_them_beside_the_name(options: dict[str, str], name: str, statsd: StatsD) -> None:
    options = {**options, "statsd_on": "True", "statsd_host": "127.0.0.1", "statsd_port": str(statsd.port)}
    code = (
        "from airflow_provider_roughy import instruments\n"
        "from airflow_provider_roughy.observability import metrics\n"
        "metrics.start()\n"
        "instruments.WAITS.add(2, kind='asset', outcome='succeeded')"
    )
    environment = {f"AIRFLOW__METRICS__{option.upper()}": value for option, value in options.items()}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True, cwd=ROOT, timeout=100)
    assert statsd.datagrams("airflow.roughy.") == [name]


class Collector(ThreadingHTTPServer):
    """An OpenTelemetry collector: the metrics that arrive by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self._Handler)
        self.bodies: list[bytes] = []

    class _Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/metrics"
            self.server.bodies.append(body)  # type: ignore[attr-defined]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    def latest(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return the last value of each metric of this package: sums, gauges, and the number of durations."""
        service = import_module("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
        values: dict[str, dict[tuple[str, ...], float]] = {}
        for body in self.bodies:
            request = service.ExportMetricsServiceRequest.FromString(body)
            for metric in (m for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics):
                if not metric.name.startswith("airflow.roughy."):
                    continue
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    tags = tuple(f"{tag.key}={tag.value.string_value}" for tag in point.attributes)
                    value = point.count if "histogram" in kind else point.as_double or point.as_int
                    values.setdefault(metric.name.removeprefix("airflow.roughy."), {})[tags] = value
        return values


@pytest.mark.once
@pytest.mark.roughy(progression="seconds=1")
def test_opentelemetry_collector_receives_the_metrics(
    roughy: Emulator, patient: None, folder: Path, tmp_path: Path
) -> None:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.05,))
        thread.start()
        try:
            run_measured(
                folder,
                tmp_path,
                AIRFLOW__METRICS__OTEL_ON="True",
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}",
                OTEL_EXPORTER_OTLP_METRICS_PROTOCOL="http/protobuf",
            )
        finally:
            collector.shutdown()
            thread.join()
        values = collector.latest()
    assert values["files"] == {("status=ready",): 3}
    assert values["credits"] == {("status=ready",): 3}
    assert values["waits"] == {("kind=asset", "outcome=succeeded"): 3}
    assert values["bytes_uploaded"][()] == sum(file.stat().st_size for file in folder.iterdir())
    assert values["upload_duration"] == {(): 3}
    assert values["waiters"] == {("kind=asset",): 0}
    assert values["requests"][("status=2xx",)] >= 10
    assert set(values) == {
        *("bytes_uploaded", "bytes_downloaded", "upload_duration", "download_duration", "files", "credits"),
        *("waits", "wait_duration", "requests", "waiters", "poll_lag"),
    }
