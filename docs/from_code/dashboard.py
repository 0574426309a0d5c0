"""The Grafana dashboard of the metrics, and the mapping by which statsd_exporter turns dotted names into labels."""

from __future__ import annotations

import json
from typing import Any

from airflow_provider_roughy.instruments import INSTRUMENTS, Instrument

#: Airflow's default ``[metrics] statsd_prefix``.
_PREFIX = "airflow"

#: Title, unit of Grafana, queries with their legends, and a description.
_Panel = tuple[str, str, list[tuple[str, str]], str]

_ROWS: list[tuple[str, list[_Panel]]] = [
    (
        "Batches",
        [
            (
                "Recordings",
                "short",
                [("sum by (status) (increase({roughy.files}[$__interval]))", "{{status}}")],
                "What tasks have reported.",
            ),
            (
                "Credits in 24 hours",
                "short",
                [("sum by (status) (increase({roughy.credits}[24h]))", "{{status}}")],
                "What the recordings cost; pending_payment is not paid for yet.",
            ),
            (
                "Transfer rate",
                "Bps",
                [
                    ("sum(rate({roughy.bytes_uploaded}[$__rate_interval]))", "uploaded"),
                    ("sum(rate({roughy.bytes_downloaded}[$__rate_interval]))", "downloaded"),
                ],
                "",
            ),
            (
                "Time per transfer, mean",
                "s",
                [
                    (
                        "sum(rate({roughy.upload_duration}_sum[1h])) / sum(rate({roughy.upload_duration}_count[1h]))",
                        "upload",
                    ),
                    (
                        "sum(rate({roughy.download_duration}_sum[1h])) "
                        "/ sum(rate({roughy.download_duration}_count[1h]))",
                        "download",
                    ),
                ],
                "",
            ),
        ],
    ),
    (
        "Waiting",
        [
            (
                "Waits that have ended",
                "short",
                [("sum by (kind, outcome) (increase({roughy.waits}[$__interval]))", "{{kind}} {{outcome}}")],
                "",
            ),
            (
                "Time per wait, mean",
                "s",
                [
                    (
                        "sum by (kind) (rate({roughy.wait_duration}_sum[1h])) "
                        "/ sum by (kind) (rate({roughy.wait_duration}_count[1h]))",
                        "{{kind}}",
                    )
                ],
                "",
            ),
            (
                "Waiters in the triggerer",
                "short",
                [("max by (kind) ({roughy.waiters})", "{{kind}}")],
                "Of several triggerers that share a StatsD server, the one that has reported last.",
            ),
            (
                "Lag of polls and of watchers, 99th percentile",
                "s",
                [
                    ('max by (kind) ({roughy.poll_lag}{quantile="0.99"})', "poll of {{kind}}"),
                    ('max({roughy.feed_lag}{quantile="0.99"})', "watchers"),
                ],
                "A lag of watchers far above their poll_interval: the lists cannot be read.",
            ),
        ],
    ),
    (
        "Roughy's API",
        [
            (
                "Requests",
                "reqps",
                [("sum by (status) (rate({roughy.requests}[$__rate_interval]))", "{{status}}")],
                "429: rate limited. none: no reply.",
            ),
            (
                "Retries",
                "short",
                [("sum by (reason) (increase({roughy.retries}[$__interval]))", "{{reason}}")],
                "",
            ),
            (
                "Webhooks",
                "short",
                [("sum by (answer) (increase({roughy.webhooks}[$__interval]))", "{{answer}}")],
                "204: accepted. 401: not signed with the secret of a connection. 503: Roughy delivers again.",
            ),
        ],
    ),
]


def prometheus_name(instrument: Instrument) -> str:
    """Return the name of a metric in Prometheus, as statsd_exporter makes it."""
    return f"{_PREFIX}_{instrument.name}".replace(".", "_")


def dashboard() -> str:
    """Return the dashboard as JSON, which Grafana imports."""
    names = {f"{{{each.name}}}": prometheus_name(each) for each in INSTRUMENTS}
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in _ROWS:
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        y += 1
        for number, (name, unit, queries, description) in enumerate(row):
            targets = []
            for ref, (query, legend) in zip("AB", queries, strict=False):
                for placeholder, known in names.items():
                    query = query.replace(placeholder, known)
                targets.append({"refId": ref, "expr": query, "legendFormat": legend})
            panels.append(
                {
                    "type": "timeseries",
                    "title": name,
                    "description": description,
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": y + 8 * (number // 2)},
                    "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                    "targets": targets,
                }
            )
        y += 8 * -(-len(row) // 2)
    for id, panel in enumerate(panels, start=1):
        panel["id"] = id
    variable = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    document = {
        "title": "Roughy",
        "uid": "airflow-provider-roughy",
        "tags": ["airflow", "roughy"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "templating": {"list": [variable]},
        "panels": panels,
    }
    return json.dumps(document, indent=2) + "\n"


def statsd_mapping() -> str:
    """Return the mapping as YAML. InfluxDB's and Datadog's tags need none."""
    lines = ["mappings:"]
    for each in INSTRUMENTS:
        if each.tags:
            lines += [
                f'  - match: "{_PREFIX}.{each.name}{".*" * len(each.tags)}"',
                f'    name: "{prometheus_name(each)}"',
                "    labels:",
                *(f'      {tag}: "${number}"' for number, tag in enumerate(each.tags, start=1)),
            ]
    return "\n".join(lines) + "\n"
