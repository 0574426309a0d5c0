"""Records what becomes of each recording: in the report of this run, and in the ledger for other runs and tries."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.ingest.result import BatchResults, RecordingResult, Status
from airflow_provider_roughy.ledger import claims
from airflow_provider_roughy.ledger.claims import Done
from airflow_provider_roughy.ledger.entries import Progress, Result, Version
from airflow_provider_roughy.logs import counted

if TYPE_CHECKING:
    from airflow_provider_roughy.exceptions import RoughyError
    from airflow_provider_roughy.ingest.upload import UploadItem
    from airflow_provider_roughy.ledger import ClaimOwner, Ledger
    from airflow_provider_roughy.ledger.claims import Held

#: Seconds for which messages use what was read of another run's lease.
_LEASE_READ_SECONDS = 10.0


class Recorder:
    """The results of one try. Several threads may use it.

    :param owner: This try of this run.
    :param ledger: The ledger; ``None`` to remember nothing.
    """

    def __init__(self, owner: ClaimOwner, ledger: Ledger | None) -> None:
        self.owner = owner
        self.ledger = ledger
        self.results = BatchResults()
        #: The error that stopped the batch, if one did.
        self.fatal: RoughyError | None = None
        #: The done recordings that this try reports, with their last version, which is removed afterwards.
        self.to_report: dict[str, Version | None] = {}
        #: The assets whose claims this run has superseded, which do not count towards `max_credits`.
        self.assets_of_other_runs: set[str | None] = set()
        #: By run, what messages say of its claims, and when its lease was read.
        self._claims: dict[str, tuple[float, str]] = {}

    def add(self, item: UploadItem, status: Status, reason: str, **fields: Any) -> None:
        """Report a recording that has no verdict of Roughy's.

        :param item: The recording.
        :param status: Its status.
        :param reason: Why.
        :param fields: More fields of its result.
        """
        self.note(item, RecordingResult(item.name, status, reason=reason, size_bytes=item.size, **fields))

    def note(self, item: UploadItem, result: RecordingResult) -> None:
        """Report a result, which is in the ledger if it is final.

        :param item: The recording.
        :param result: The result.
        """
        self.results.add(result)

    def defer(self, item: UploadItem, reason: str) -> None:
        """Report a recording as left to a later run, with its costs."""
        cost = "" if item.credits is None or reason.startswith("it costs") else f", {counted(item.credits, 'credit')}"
        self.add(item, Status.DEFERRED, reason + cost, credits=item.credits)

    def interrupt(self, item: UploadItem, reason: str) -> None:
        """Report a recording as interrupted by an error that a retry may fix."""
        self.add(item, Status.INTERRUPTED, reason, asset_id=item.asset_id, retryable=True)

    def key_of(self, item: UploadItem) -> str | None:
        """Return the key by which the ledger can forget a recording; ``None`` without a ledger."""
        return item.key or None if self.ledger is not None else None

    def reject(self, item: UploadItem, reason: str, *, remember: bool) -> None:
        """Report a recording as rejected.

        :param item: The recording.
        :param reason: Why.
        :param remember: Whether to store it in the ledger.
        """
        if not remember:
            self.add(item, Status.REJECTED, reason)
        elif self.complete(item, "rejected", reason=reason):
            self.add(item, Status.REJECTED, reason, key=self.key_of(item))

    def complete(self, item: UploadItem, state: str, **fields: Any) -> bool:
        """Store the result of a recording in the ledger.

        :param item: The recording.
        :param state: One of ``ENDED``.
        :param fields: More fields of the result.
        :returns: Whether this run reports it, and not another one.
        """
        # Without a key, it is in no ledger: an upload of 0.2, which has forgotten it meanwhile.
        if self.ledger is None or not item.key:
            return True
        mine = item.result(self.owner, state, **fields)
        stored = claims.drive(claims.complete(mine), self.ledger.perform)
        if item.legacy_key is not None:
            self.ledger.finish_legacy(item.legacy_key)
        if stored.owner != mine.owner:
            self.leave(item, Done(stored))
            return False
        self.to_report[item.key] = item.version
        return True

    def leave(self, item: UploadItem, ended: Done | Held) -> None:
        """Count or defer a recording that another run has; report it if an earlier try of this run has its result."""
        if isinstance(ended, Done):
            if ended.result.owner == str(self.owner):
                self.report(ended.result, item.version)
            else:
                self.results.count_ingested(ended.result.state)
            return
        holder = ended.version
        if holder is not None and holder.asset_id is not None and holder.state != Progress.UPLOADING:
            self.results.count_ingested(holder.state)
            return
        self.add(
            item,
            Status.DEFERRED,
            "another run has just claimed it, and a later run reports it" if holder is None else self._claim_of(holder),
        )

    def _claim_of(self, holder: Version) -> str:
        """Say which run holds a claim. Its lease is read once in a while only: it may hold thousands."""
        assert self.ledger is not None
        owner = str(holder.owner)
        read_at, text = self._claims.get(owner, (-_LEASE_READ_SECONDS, ""))
        if time.monotonic() - read_at >= _LEASE_READ_SECONDS:
            text = self.ledger.describe_claim(owner)
            self._claims[owner] = (time.monotonic(), text)
        return text

    def report(self, result: Result, version: Version | None) -> None:
        """Report a result of the ledger.

        :param result: The result.
        :param version: The last version of its recording, which is removed once a try has reported the result.
        """
        self.to_report[result.key] = version
        if result.owner != str(self.owner):
            self.assets_of_other_runs.add(result.asset_id)
        self.results.add(replace(row_of(result), repeated=version is None))

    def spent(self) -> int:
        """Return the costs of what this run has uploaded, by its results."""
        return sum(
            result.credits or 0
            for result in self.results.of(Status.READY, Status.PENDING_PAYMENT)
            if not result.earlier and result.asset_id not in self.assets_of_other_runs
        )

    def finish(self) -> None:
        """Record in the ledger what this try has reported. Later tries of this run report it again; other runs do not.

        :raises RoughyLedgerError: If the ledger cannot be written; then a later run may report it once more.
        """
        if self.ledger is None or not self.to_report:
            return
        self.ledger.record_reported(self.owner, self.to_report)
        self.ledger.remove_versions(
            [(version.key, version.n) for version in self.to_report.values() if version is not None]
        )
        self.to_report = {}


def row_of(result: Result) -> RecordingResult:
    """Return the result of a recording, by what the ledger has."""
    status = {"ready": Status.READY, "uploaded": Status.READY, "rejected": Status.REJECTED}.get(
        result.state, Status.FAILED
    )
    names = ("asset_id", "reason", "size_bytes", "seconds", "credits", "request_id")
    key = result.key if status in (Status.FAILED, Status.REJECTED) else None
    return RecordingResult(result.source, status, key=key, **{name: getattr(result, name) for name in names})
