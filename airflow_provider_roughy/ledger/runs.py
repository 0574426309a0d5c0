"""What a ledger knows of runs: whether one is active, and what it has reported."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyLedgerEntryError, RoughyLedgerError
from airflow_provider_roughy.ledger.lease import LEASE_SECONDS, Lease, StoredLease, encode_lease
from airflow_provider_roughy.ledger.objects import LedgerObjects

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from airflow_provider_roughy.ledger.entries import ClaimOwner

_log = logging.getLogger(__name__)


class Runs(LedgerObjects):
    """The runs that use a ledger."""

    @contextmanager
    def lease(self, owner: ClaimOwner) -> Iterator[Lease]:
        """Hold the lease of a run while the body runs, and give it up at the end unless it was extended.

        :param owner: The try that holds it.
        :raises RoughyLedgerError: If it cannot be written.
        """
        lease = Lease(lambda until: self.write_lease(owner, until), f"{owner} in ledger {self.uri}")
        lease.renew()
        thread = threading.Thread(target=lease.run, name="roughy-ledger-lease", daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            lease.end()
            if not lease.extended:
                self._give_up_lease(owner)

    def _give_up_lease(self, owner: ClaimOwner) -> None:
        try:
            # Another live try of this run keeps a lease that it has renewed.
            lease = self._read_lease(str(owner))
            if lease is None or lease.try_token == owner.try_token:
                self.write_lease(owner, 0.0)
        except RoughyLedgerError as err:
            _log.warning(
                "Giving up the lease of %s in ledger %s failed. It expires automatically within %.0f minutes; until "
                "then, other runs defer what this run has not finished: %s",
                owner,
                self.uri,
                LEASE_SECONDS / 60,
                err,
            )

    def write_lease(self, owner: ClaimOwner, until: float) -> None:
        """Write the lease of a run.

        :param owner: The try that writes it.
        :param until: When it expires, in seconds since the epoch.
        :raises RoughyLedgerError: If it cannot be written.
        """
        content = encode_lease(str(owner), until, owner.try_token)
        with self._errors():
            self._folder.write(_run_name(str(owner)), content)

    def lease_to_dict(self, owner: ClaimOwner) -> dict[str, Any]:
        """Return a lease for :func:`renewing`, as plain JSON without secrets.

        :param owner: The try that holds it.
        """
        return {"ledger": self._location, "conn_id": self._conn_id, **asdict(owner)}

    def is_alive(self, owner: ClaimOwner | str) -> bool:
        """Return whether the lease of a run has not expired.

        :param owner: The run.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        lease = self._read_lease(str(owner))
        return lease is not None and lease.is_alive(time.time())

    def describe_claim(self, owner: ClaimOwner | str) -> str:
        """Say which run holds a claim, when it last renewed its lease, and when another run may supersede it.

        :param owner: The run.
        :returns: Part of a sentence, such as ``dag.task, run r holds the claim on it (…)``.
        """
        try:
            lease = self._read_lease(str(owner))
        except RoughyLedgerError as err:
            return f"{owner} holds the claim on it, and its lease cannot be read: {err}"
        if lease is None or not lease.is_alive(time.time()):
            ended = f" (its lease expired at {_moment(lease.until)})" if lease is not None and lease.until else ""
            return f"{owner} held the claim on it until recently{ended}, and another run may supersede the claim now"
        renewed = f"was last renewed at {_moment(lease.written)}" if lease.written else "has not expired"
        return (
            f"{owner} holds the claim on it (its lease {renewed}); another run supersedes the claim if the "
            f"lease is not renewed by {_moment(lease.until)}"
        )

    def has_started(self, owner: ClaimOwner | str) -> bool:
        """Return whether a run has had a lease before, so that this is not its first try.

        :param owner: The run.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        return self._read(_run_name(str(owner))) is not None

    def read_lease(self, owner: ClaimOwner | str) -> StoredLease | None:
        """Return the lease of a run; ``None`` if the run has had none.

        :param owner: The run.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        return self._read_lease(str(owner))

    def _read_lease(self, owner: str) -> StoredLease | None:
        content = self._read(_run_name(owner))
        return None if content is None else StoredLease.decode(content)

    def record_reported(self, owner: ClaimOwner, keys: Iterable[str]) -> None:
        """Store which results a try has reported to Airflow, for the later tries of its run.

        :param owner: The try.
        :param keys: All recordings whose results it has reported.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        records, known = self._read_reported(owner)
        new = set(keys) - known
        if not new:
            return
        content = json.dumps({"keys": sorted(new), "try": owner.try_token}).encode()
        n = records + 1
        with self._errors():
            while not self._create(_run_name(str(owner), n), content):
                n += 1

    def append_report(self, owner: ClaimOwner, n: int, results: Mapping[str, Mapping[str, Any]]) -> int:
        """Store results that a try has reported, completely, as a record of its run.

        :param owner: The try.
        :param n: The number of the record to create, if it does not exist.
        :param results: The results as plain JSON, by the key of their recording.
        :returns: The number of the next record.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        values = {"keys": list(results), "results": list(results.values()), "try": owner.try_token}
        content = json.dumps(values).encode()
        with self._errors():
            while not self._create(_run_name(str(owner), n), content):
                n += 1
        return n + 1

    def read_reports(self, owner: ClaimOwner) -> Iterator[dict[str, dict[str, Any]]]:
        """Yield the results that the tries of a run have reported, by key: one record at a time, the oldest first.

        :param owner: The run.
        :raises RoughyLedgerEntryError: If a record is damaged.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        n = 1
        while (content := self._read(name := _run_name(str(owner), n))) is not None:
            try:
                values = json.loads(content)
                yield dict(zip(values["keys"], values.get("results", ()), strict=False))
            except (ValueError, TypeError, KeyError, RecursionError) as err:
                raise RoughyLedgerEntryError(
                    f"{name} of ledger {self.uri} cannot be read ({err}): it has results that {owner} has reported. "
                    "Remove it to continue; those results are then missing from the report of this run"
                ) from None
            n += 1

    def write_waiting(self, owner: ClaimOwner, n: int, values: Mapping[str, Any]) -> None:
        """Store what a task needs after a wait in the triggerer. It replaces what is stored under that number.

        :param owner: The run.
        :param n: Its number.
        :param values: Plain JSON.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        with self._errors():
            self._folder.write(_waiting_name(str(owner), n), json.dumps(values).encode())

    def read_waiting(self, owner: ClaimOwner, n: int) -> dict[str, Any]:
        """Return what :meth:`write_waiting` stored; an empty object if that was removed.

        :param owner: The run.
        :param n: Its number.
        :raises RoughyLedgerEntryError: If it is damaged.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        name = _waiting_name(str(owner), n)
        content = self._read(name)
        if content is None:
            return {}
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError, RecursionError) as err:
            raise RoughyLedgerEntryError(
                f"{name} of ledger {self.uri} cannot be read ({err}): it lists the assets that {owner} waits for. "
                "A retry of the task finds them by the other objects of the ledger"
            ) from None

    def remove_waiting(self, owner: ClaimOwner, numbers: Iterable[int]) -> None:
        """Remove what :meth:`write_waiting` stored.

        :param owner: The run.
        :param numbers: Its numbers.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        with self._errors():
            self._folder.remove([_waiting_name(str(owner), n) for n in numbers])

    def reported(self, owner: ClaimOwner) -> set[str]:
        """Return the recordings whose results the tries of a run have reported to Airflow.

        :param owner: The run.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        return self._read_reported(owner)[1]

    def decide_again(self, owner: ClaimOwner, key: str, *, again: bool) -> bool:
        """Store whether a run ingests a recording again that is done. The first try decides it for all tries.

        :param owner: The try.
        :param key: The recording.
        :param again: What this try would decide.
        :returns: What the first try has decided.
        :raises RoughyLedgerEntryError: If that cannot be read.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        name = f"{_run_name(str(owner)).removesuffix('.json')}.again-{key}"
        with self._errors():
            if self._create(name, json.dumps({"again": again, "try": owner.try_token}).encode()):
                return again
            content = self._folder.read(name) or b""
        try:
            return bool(json.loads(content)["again"])
        except (ValueError, TypeError, KeyError, RecursionError) as err:
            raise RoughyLedgerEntryError(self._explain(name, content, err)) from None

    def _read_reported(self, owner: ClaimOwner) -> tuple[int, set[str]]:
        """Read the records by their names, as a list may lag; return how many there are, and their keys."""
        records, keys = 0, set[str]()
        while (content := self._read(_run_name(str(owner), records + 1))) is not None:
            records += 1
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                keys.update(key for key in json.loads(content)["keys"] if isinstance(key, str))
        return records, keys


def _moment(seconds: float) -> str:
    """Return a time in UTC, for people.

    :param seconds: Since the epoch.
    """
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return "an unknown time"


def _run_name(owner: str, n: int | None = None) -> str:
    """Return the name of a run's lease, or of the n-th record of what it has reported."""
    run = hashlib.sha256(owner.encode()).hexdigest()[:32]
    return f"runs/{run}.json" if n is None else f"runs/{run}.{n}.json"


def _waiting_name(owner: str, n: int) -> str:
    """Return the name of the n-th part of what a run keeps during its wait."""
    return f"runs/{hashlib.sha256(owner.encode()).hexdigest()[:32]}.waiting-{n}.json"
