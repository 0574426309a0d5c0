"""Sends the metrics of this package to Airflow's Stats: StatsD, Datadog or OpenTelemetry, as Airflow is configured.

``instruments.py`` has the metrics. Where the backend has tags (Datadog, OpenTelemetry, StatsD with ``[metrics]
statsd_influxdb_enabled``), a metric has its own name and tags. Plain StatsD has none, so there the values of the tags
follow the name: ``roughy.files.ready``.

Metrics are off unless Airflow's are on. No error in this module fails a task.
"""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Any

from airflow_provider_roughy import instruments
from airflow_provider_roughy.compat import conf, get_stats
from airflow_provider_roughy.instruments import Instrument

_log = logging.getLogger(__name__)

_lock = threading.Lock()
_started = False


def start() -> None:
    """Send metrics from now on, if Airflow's configuration has turned them on. Only the first call does something.

    That one may block: Airflow imports its client, which resolves the name of a host. Call it in a thread.
    """
    global _started
    if _started:
        return
    with _lock:
        if _started:
            return
        try:
            if _is_on():
                stats = get_stats()
                # Creates Airflow's client now. A timer without a name sends nothing.
                stats.timer()
                instruments.send_to(_Sender(stats, tagged=_has_tags()))
        except Exception as error:  # A configuration that Airflow itself fails at.
            _log.warning("Sending metrics is off, because starting Airflow's Stats failed: %s", error)
        _started = True


def stop() -> None:
    """Send no metrics until the next :func:`start`, which reads Airflow's configuration again."""
    global _started
    with _lock:
        instruments.send_to(None)
        _started = False


def _is_on() -> bool:
    options = ("statsd_datadog_enabled", "statsd_on", "otel_on")
    return any(conf.getboolean("metrics", option, fallback=False) for option in options)


def _has_tags() -> bool:
    """Return whether the backend has tags. If several are on, Airflow uses the first one of these."""
    if conf.getboolean("metrics", "statsd_datadog_enabled", fallback=False):
        return conf.getboolean("metrics", "statsd_datadog_metrics_tags", fallback=True)
    if conf.getboolean("metrics", "statsd_on", fallback=False):
        return conf.getboolean("metrics", "statsd_influxdb_enabled", fallback=False)
    return True


class _Sender:
    """Sends values to Airflow's Stats.

    :param stats: Airflow's Stats.
    :param tagged: Whether its backend has tags.
    """

    def __init__(self, stats: Any, *, tagged: bool) -> None:
        self._stats = stats
        self._tagged = tagged
        self._has_failed = False
        self._thread = threading.local()

    def __call__(self, instrument: Instrument, value: float, tags: dict[str, str]) -> None:
        # A signal handler that interrupts this method must not wait for a lock that the same thread holds.
        if getattr(self._thread, "is_sending", False):
            return
        self._thread.is_sending = True
        try:
            self._send(instrument, value, tags)
        except Exception as error:  # Of Airflow's client, or of a `stat_name_handler` in the configuration.
            if not self._has_failed:
                self._has_failed = True
                _log.warning("Sending metric %s failed; later errors are not logged: %s", instrument.name, error)
        finally:
            self._thread.is_sending = False

    def _send(self, instrument: Instrument, value: float, tags: dict[str, str]) -> None:
        name, options = instrument.name, {}
        if self._tagged:
            options = {"tags": tags}
        elif tags:
            name = ".".join([name, *(tags[tag] for tag in instrument.tags)])
        if instrument.type == "counter":
            self._stats.incr(name, value, **options)
        elif instrument.type == "gauge":
            self._stats.gauge(name, value, **options)
        else:
            # In milliseconds, as Airflow's own.
            self._stats.timing(name, timedelta(seconds=value), **options)
