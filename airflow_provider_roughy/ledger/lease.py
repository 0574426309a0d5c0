"""Leases: until when a run counts as active.

A lease only decides whether another run may supersede the claims of its run. If it is wrong, because a clock jumped or
a renewal was late, nothing is uploaded twice: a run gives up a recording too early, or another run waits longer than
needed. A run has ended when its lease was released or has expired.

It is one object per run, ``runs/<hash>.json``, which all tries of the run share and overwrite: ``owner``, ``until`` in
seconds since the epoch, ``at``, and the ``try`` that wrote it. A try that ends gives up only a lease that it wrote
itself, so that another live try of the same run keeps it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from airflow_provider_roughy.exceptions import RoughyLedgerError
from airflow_provider_roughy.ledger.entries import utc_now
from airflow_provider_roughy.logs import Log

#: Seconds without a renewal after which a run counts as ended.
LEASE_SECONDS = 600.0
#: Seconds between two renewals.
RENEW_SECONDS = 120.0
#: Seconds that the clock of the writer of a lease may be ahead of ours. A lease from further ahead counts as expired,
#: as one from years ahead would otherwise never expire.
_MAX_SKEW = 86_400.0

_log = logging.getLogger(__name__)


def log_failed_renewal(log: Log, name: str, error: Exception) -> None:
    """Log that a lease could not be renewed, and what that means.

    :param log: The logger.
    :param name: The run and its ledger.
    :param error: Why.
    """
    log.warning(
        "Renewing the lease of %s failed; retrying in %.0f s. After %.0f s without a renewal, another run may take "
        "over its recordings; none is uploaded twice: %s",
        name,
        RENEW_SECONDS,
        LEASE_SECONDS,
        error,
    )


def encode_lease(owner: str, until: float, try_token: str) -> bytes:
    """Return a lease as it is stored.

    :param owner: The name of the run.
    :param until: When it expires, in seconds since the epoch.
    :param try_token: The try of the run that writes it.
    """
    return json.dumps({"owner": owner, "until": until, "at": utc_now(), "try": try_token}).encode()


@dataclass(frozen=True)
class StoredLease:
    """A lease as it was read.

    :param until: When it expires, in seconds since the epoch.
    :param written: When it was written, in seconds since the epoch, by the clock of the writer.
    :param try_token: The try that wrote it.
    """

    until: float = 0.0
    written: float = 0.0
    try_token: str = ""

    @classmethod
    def decode(cls, content: bytes) -> StoredLease:
        """Read a lease. An object that cannot be read counts as an expired lease.

        :param content: The stored bytes.
        """
        try:
            values = json.loads(content)
            until = float(values["until"])
            written = datetime.fromisoformat(values["at"]).timestamp() if values.get("at") else 0.0
            return cls(until, written, str(values.get("try") or ""))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return cls()

    def is_alive(self, now: float) -> bool:
        """Return whether it has not expired.

        :param now: Seconds since the epoch.
        """
        return self.until > now and self.written <= now + _MAX_SKEW


class Lease:
    """The lease of one try, renewed by a thread until it is ended or extended.

    :param write: Writes it, valid until a time in seconds since the epoch.
    :param name: Names the run and the ledger in messages.
    """

    def __init__(self, write: Callable[[float], None], name: str = "this run") -> None:
        self._write = write
        self._name = name
        # One write at a time: a slow renewal must not overwrite an extension that was written after it.
        self._lock = threading.Lock()
        self._ended = threading.Event()
        #: Whether it stays after the end of the work, for the trigger.
        self.extended = False

    def renew(self) -> None:
        """Renew it, unless it has been ended or extended.

        :raises RoughyLedgerError: If it cannot be written.
        """
        with self._lock:
            if not self._ended.is_set():
                self._write(time.time() + LEASE_SECONDS)

    def renew_or_log(self) -> None:
        """Renew it, and log an error: the next renewal may succeed."""
        try:
            self.renew()
        except RoughyLedgerError as err:
            log_failed_renewal(_log, self._name, err)

    def extend(self, until: float) -> None:
        """Keep it after the end of the work, for a wait in the triggerer.

        :param until: When it expires, in seconds since the epoch.
        :raises RoughyLedgerError: If it cannot be written.
        """
        self._ended.set()
        with self._lock:
            self._write(until)
            self.extended = True

    def end(self) -> None:
        """Stop renewing it, and wait up to five seconds for a renewal under way."""
        self._ended.set()
        if self._lock.acquire(timeout=5):
            self._lock.release()

    def run(self) -> None:
        """Renew it until it ends. The intervals do not depend on the system clock."""
        while not self._ended.wait(RENEW_SECONDS):
            self.renew_or_log()
