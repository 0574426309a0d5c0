"""Assets: their whole life cycle, from the first byte to their removal."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from decimal import Decimal
from pathlib import Path
from typing import Any

from airflow_provider_roughy.emulator.choices import Choices
from airflow_provider_roughy.emulator.media import Kind, Measured, measure, sniff
from airflow_provider_roughy.emulator.wire import (
    ApiError,
    Reader,
    as_decimal,
    as_integer,
    as_language,
    as_one_of,
    as_text,
    as_uuid,
    read,
    uuid7,
)

from .background import Background
from .clock import Clock
from .credits import Credits
from .database import Database, UnknownId
from .files import Files
from .history import History
from .projects import Projects, well_known_id
from .uploads import Upload, Uploads

#: The documented states of an asset.
STATES = ("pending_upload", "processing", "pending_payment", "ready", "failed")

#: Duration of assets that are put into a state without any bytes.
SEEDED_DURATION = "60.000"

#: The fields of an asset that :meth:`Assets.set_state` accepts.
SETTABLE_FIELDS: dict[str, Reader[Any]] = {
    "type": as_one_of(("audio", "video")),
    "extension": as_text(1, 64),
    "content_type": as_text(1, 256),
    "duration_seconds": as_decimal,
    "error_code": as_text(1, 256),
    "error_message": as_text(0, 10_000),
}
#: The fields that :meth:`Assets.seed` accepts.
SEEDABLE_FIELDS: dict[str, Reader[Any]] = SETTABLE_FIELDS | {
    "project_id": as_uuid,
    "size_bytes": as_integer(0, 1 << 60),
    "language": as_language,
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS assets (
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, project_id TEXT NOT NULL, upload_id TEXT NOT NULL,
    type TEXT, state TEXT NOT NULL, extension TEXT, content_type TEXT, size_bytes INTEGER NOT NULL,
    duration_seconds TEXT, language TEXT, error_code TEXT, error_message TEXT, created_at INTEGER NOT NULL,
    processing_at INTEGER, polls INTEGER NOT NULL DEFAULT 0, released INTEGER NOT NULL DEFAULT 0,
    measured_seconds TEXT, measured_problem TEXT, unpaid_at INTEGER);
CREATE INDEX IF NOT EXISTS assets_by_state ON assets (state);
CREATE INDEX IF NOT EXISTS assets_by_account ON assets (account, created_at);
CREATE INDEX IF NOT EXISTS assets_by_project ON assets (account, project_id, created_at);
"""


@dataclasses.dataclass(frozen=True)
class Asset:
    """One asset. The fields ``processing_at`` to ``unpaid_at``, and times in microseconds, are not part of the API.

    :param size_bytes: The size that was declared at its creation.
    :param processing_at: When its last byte arrived.
    :param polls: How often it was polled in ``processing``.
    :param released: Whether :meth:`Assets.release` was called for it.
    :param measured_seconds: The duration found in the media, not yet part of a reply.
    :param measured_problem: Why the media cannot be used.
    :param unpaid_at: When it became ``pending_payment``.
    """

    id: str
    account: int
    project_id: str
    upload_id: str
    type: str | None
    state: str
    extension: str | None
    content_type: str | None
    size_bytes: int
    duration_seconds: str | None
    language: str | None
    error_code: str | None
    error_message: str | None
    created_at: int
    processing_at: int | None
    polls: int
    released: int
    measured_seconds: str | None
    measured_problem: str | None
    unpaid_at: int | None

    @property
    def measured(self) -> bool:
        """Whether the media has been measured."""
        return self.measured_seconds is not None or self.measured_problem is not None

    @property
    def price(self) -> int:
        """Credits for the asset: one for each started minute (credit ledger page)."""
        seconds = Decimal(self.measured_seconds or self.duration_seconds or SEEDED_DURATION)
        # A duration that is rounded to zero counts as a started minute, too.
        return max(1, math.ceil(seconds / 60))

    @property
    def started_at(self) -> int:
        """When Roughy started to process it."""
        return self.processing_at or self.created_at


class Assets:
    """All assets."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        files: Files,
        history: History,
        projects: Projects,
        credits: Credits,
        uploads: Uploads,
        choices: Choices,
    ) -> None:
        self._database = database
        self._clock = clock
        self._files = files
        self._projects = projects
        self._credits = credits
        self._uploads = uploads
        self._choices = choices
        self._probes = Background("roughy-probe")
        self._history = history
        #: Called with the id of each asset that is about to be removed. The resources derived from assets use it.
        self.on_removed: list[Callable[[str], None]] = []
        database.create(_SCHEMA)

    def resume(self) -> None:
        """Resume the work of a process that ended or was killed."""
        for upload in self._uploads.all_open():
            self._recover(upload)
        for asset in self._database.rows(Asset, "SELECT * FROM assets WHERE state = 'processing'"):
            self._start_probe(asset)

    def _recover(self, upload: Upload) -> None:
        """Complete a change that a killed process made in the file but not in the database."""
        if upload.committed is not None:
            path = self.path(upload.asset_id)
            if path.exists():
                os.truncate(path, upload.committed)
            self._uploads.set_committed(upload.id, None)
            self.forget_kind(upload)
        if self._files.size(upload.asset_id) >= upload.size_bytes:
            with contextlib.suppress(ApiError):
                self.identify(upload.id)
                self.finish(upload.id)

    def close(self) -> None:
        """Stop measuring."""
        self._probes.close()

    def clear(self) -> None:
        """Drop all work on assets."""
        self._probes.clear()

    # Reading

    def get(self, account: int | None, asset_id: str, *, poll: bool = False) -> Asset:
        """Return an asset, or raise the 404.

        :param account: The account that it must belong to; ``None`` for any.
        :param poll: Whether this request counts as a poll for ``progression="polls=n"``.
        """
        with self._database.change():
            found = self._database.row(Asset, "SELECT * FROM assets WHERE id = ?", asset_id)
            if found is None or account not in (None, found.account):
                raise ApiError(404, "Asset not found.")
            if poll:
                self._count_polls([found])
            return found

    def page(
        self, account: int, project_id: str | None, state: str | None, limit: int, offset: int
    ) -> tuple[list[Asset], int]:
        """Return one page of assets, newest first, and the number of all that match. Counts as a poll of each."""
        with self._database.change():
            if project_id is not None:
                self._projects.get(account, project_id)
            filters = {"account": account, "project_id": project_id, "state": state}
            items, total = self._database.page(Asset, "assets", filters, limit, offset)
            self._count_polls(items)
            return items, total

    def _count_polls(self, assets: Sequence[Asset]) -> None:
        for asset in assets:
            if asset.state == "processing":
                self._database.execute("UPDATE assets SET polls = polls + 1 WHERE id = ?", asset.id)

    def all(self) -> list[Asset]:
        """Return every asset of every account, oldest first."""
        return self._database.rows(Asset, "SELECT * FROM assets ORDER BY created_at, rowid")

    def find(self, asset_id: str) -> Asset | None:
        """Return an asset of any account; ``None`` if there is none of that id."""
        return self._database.row(Asset, "SELECT * FROM assets WHERE id = ?", asset_id)

    def known(self, asset_id: str) -> Asset:
        """Return an asset of any account.

        :raises UnknownId: If there is no such asset.
        """
        if found := self.find(asset_id):
            return found
        raise UnknownId(asset_id)

    def path(self, asset_id: str) -> Path:
        """Return the path of the bytes of an asset, whether or not they exist."""
        return self._files.path(asset_id)

    def require_cuttable(self, asset: Asset) -> None:
        """Raise the 409 with the reason why an asset can be neither cut nor rendered as audio (cut and error pages)."""
        if asset.state == "ready":
            return
        if asset.state == "pending_payment":
            raise ApiError(409, "The asset is not paid for.", code="asset_payment_required")
        if asset.state == "failed":
            raise ApiError(409, "The asset has failed.", code="asset_failed")
        headers = {"Retry-After": str(self._choices.processing_retry_after)}
        raise ApiError(409, "The asset is still being processed.", code="asset_processing", headers=headers)

    # Creating and deleting

    def create(self, account: int, project_id: str, size_bytes: int, language: str | None) -> Asset:
        """Create an asset and open its upload; 402 unless the balance is positive (credit ledger page)."""
        with self._database.change():
            project = self._projects.get(account, project_id)
            if project.state == "archived" and not self._choices.archived_project_accepts_assets:
                raise ApiError(409, "Project is archived.")
            if size_bytes > self._choices.max_upload_bytes:
                problem = ("body.size_bytes", f"Input should be at most {self._choices.max_upload_bytes}")
                status = self._choices.over_limit_size_status
                raise ApiError(status, "size_bytes exceeds the cap.", fields=[problem] if status == 422 else [])
            if self._credits.balance(account) <= 0:
                raise ApiError(402, "Your credit balance is used up. Top up to upload more.")
            return self._open(account, project_id, size_bytes, language)

    def _open(self, account: int, project_id: str, size_bytes: int, language: str | None) -> Asset:
        now = self._clock.now()
        asset = Asset(
            id=uuid7(now),
            account=account,
            project_id=project_id,
            upload_id=uuid7(now),
            type=None,
            state="pending_upload",
            extension=None,
            content_type=None,
            size_bytes=size_bytes,
            duration_seconds=None,
            language=language,
            error_code=None,
            error_message=None,
            created_at=now,
            processing_at=None,
            polls=0,
            released=0,
            measured_seconds=None,
            measured_problem=None,
            unpaid_at=None,
        )
        self._database.insert("assets", asset)
        self._uploads.open(asset.upload_id, account, asset.id, size_bytes)
        self._history.note(asset.id, asset.state, now)
        return asset

    def delete(self, account: int, asset_id: str) -> None:
        """Delete an asset and everything derived from it, in any state, immediately and permanently (delete page)."""
        with self._database.change():
            self._delete(self.get(account, asset_id))

    def delete_of_project(self, project_id: str) -> None:
        """Remove all assets of a project."""
        with self._database.change():
            for asset in self._database.rows(Asset, "SELECT * FROM assets WHERE project_id = ?", project_id):
                self._delete(asset)

    def _delete(self, asset: Asset) -> None:
        if self._choices.refund_on_delete:
            self._credits.refund(asset.account, asset.id)
        self._remove(asset.id)

    def _remove(self, asset_id: str) -> None:
        for remove_derived in self.on_removed:
            remove_derived(asset_id)
        self._uploads.close_of(asset_id, "cancelled")
        self._database.execute("DELETE FROM assets WHERE id = ?", asset_id)
        self._history.forget(asset_id)
        self._probes.forget(asset_id)
        self._files.remove(asset_id)

    # Uploading

    def identify(self, upload_id: str) -> None:
        """Detect the media type from the first bytes of an upload, once there are enough of them.

        :raises ApiError: The 409 if they are neither audio nor video; this ends the upload.
        """
        with self._database.change():
            upload = self._uploads.get_open(upload_id)
            asset = self.get(None, upload.asset_id)
            if asset.extension is not None or self._files.size(asset.id) < self._choices.min_upload_bytes:
                return
            with self.path(asset.id).open("rb") as file:
                kind = sniff(file.read(self._choices.identify_bytes))
            if kind is not None:
                self._set_kind(asset.id, kind)
                return
            problem, fate = "The uploaded bytes are neither audio nor video.", self._choices.rejected_upload
            self._end_upload(upload, "rejected", keep_asset=fate != "removed")
            if fate == "failed":
                self._fail(asset.id, problem, self._clock.now())
        raise ApiError(409, problem, code=self._choices.unsupported_media_code)

    def forget_kind(self, upload: Upload) -> None:
        """Undo :meth:`identify` if nothing of the first chunk is kept."""
        if self._files.size(upload.asset_id) == 0:
            self._database.update("assets", upload.asset_id, type=None, extension=None, content_type=None)

    def _set_kind(self, asset_id: str, kind: Kind) -> None:
        self._database.update("assets", asset_id, **dataclasses.asdict(kind))

    def finish(self, upload_id: str) -> None:
        """Move an asset whose last byte has arrived to ``processing``."""
        with self._database.change():
            upload = self._uploads.get_open(upload_id)
            self._uploads.close(upload_id, "finished")
            self._enter_processing(upload.asset_id)

    def cancel(self, upload_id: str) -> None:
        """Cancel an open upload and remove its asset (cancel page)."""
        with self._database.change():
            self._end_upload(self._uploads.get_open(upload_id), "cancelled", keep_asset=False)

    def _end_upload(self, upload: Upload, status: str, *, keep_asset: bool) -> None:
        self._uploads.close(upload.id, status)
        if keep_asset:
            self._files.remove(upload.asset_id)
        else:
            self._remove(upload.asset_id)

    # Processing

    def _enter_processing(self, asset_id: str) -> None:
        now = self._clock.now()
        self._database.update("assets", asset_id, processing_at=now, polls=0, released=0)
        self._enter(asset_id, "processing", now)
        self._start_probe(self.get(None, asset_id))

    def _enter(self, asset_id: str, state: str, at: int) -> None:
        self._database.update("assets", asset_id, state=state)
        self._history.note(asset_id, state, at)

    def _start_probe(self, asset: Asset) -> None:
        if not asset.measured:
            self._probes.start(asset.id, self._probe)

    def _probe(self, asset_id: str) -> None:
        found = measure(self.path(asset_id), stop=self._probes.closing)
        if not self._probes.closing():
            self._note_measured(asset_id, found)

    def _note_measured(self, asset_id: str, found: Measured) -> None:
        with self._database.change():
            self._database.update("assets", asset_id, measured_seconds=found.seconds, measured_problem=found.problem)
            self._probes.forget(asset_id)

    def due_work(self) -> list[Future[None]]:
        """Return the measuring still under way for assets that are due to settle."""
        if self._probes.idle:
            return []
        due, value = self._clock.progression.due(self._clock.now(), "processing_at")
        query = f"SELECT id FROM assets WHERE state = 'processing' AND {due}"
        return self._probes.pending([row["id"] for row in self._database.execute(query, value).fetchall()])

    def sweep(self) -> None:
        """Settle what is due, expire uploads, and delete assets that have been unpaid for too long."""
        now = self._clock.now()
        for upload in self._uploads.expired():
            self._end_upload(upload, "expired", keep_asset=self._choices.expired_asset == "kept")
        due, value = self._clock.progression.due(now, "processing_at")
        measured = "(measured_seconds IS NOT NULL OR measured_problem IS NOT NULL)"
        settling = f"SELECT * FROM assets WHERE state = 'processing' AND {measured} AND {due}"
        # Assets that settle at the same moment are charged in the order in which their bytes arrived.
        assets = sorted(self._database.rows(Asset, settling, value), key=lambda asset: asset.started_at)
        ends = [(self._clock.progression.finished_at(asset.started_at, now), asset) for asset in assets]
        for at, asset in sorted(ends, key=lambda end: end[0]):
            self._settle(asset, at)
        limit = now - round(self._choices.unpaid_ttl_seconds * 1_000_000)
        purged = "SELECT * FROM assets WHERE state = 'pending_payment' AND unpaid_at <= ?"
        for asset in self._database.rows(Asset, purged, limit):
            self._remove(asset.id)

    def _settle(self, asset: Asset, at: int) -> None:
        if asset.measured_problem is not None:
            self._fail(asset.id, asset.measured_problem, at)
            return
        self._database.update("assets", asset.id, duration_seconds=asset.measured_seconds)
        if not self._charge(asset, at):
            self._database.update("assets", asset.id, unpaid_at=at)
            self._enter(asset.id, "pending_payment", at)

    def _fail(self, asset_id: str, problem: str, at: int) -> None:
        code = self._choices.failed_error_code
        self._database.update("assets", asset_id, error_code=code, error_message=problem)
        self._enter(asset_id, "failed", at)

    def _charge(self, asset: Asset, at: int) -> bool:
        """Debit the price and make the asset ready; change nothing if the balance is too low."""
        if self._credits.balance(asset.account) < asset.price and not self._choices.partial_debit:
            return False
        self._credits.consume(asset.account, asset.price, asset.id, at)
        self._database.update("assets", asset.id, unpaid_at=None)
        self._enter(asset.id, "ready", at)
        return True

    def activate(self, account: int) -> None:
        """Charge unpaid assets after a top-up, oldest first (credit ledger page)."""
        now = self._clock.now()
        query = "SELECT * FROM assets WHERE state = 'pending_payment' AND account = ? ORDER BY created_at, rowid"
        for asset in self._database.rows(Asset, query, account):
            if not self._charge(asset, now) and not self._choices.activation_skips_unaffordable:
                break

    # Steering

    def release(self, asset_id: str | None = None) -> list[str]:
        """Let processing assets settle at the next sweep, whatever the progression.

        :param asset_id: One asset, or ``None`` for all.
        :returns: The ids that are in ``processing``.
        """
        query = "SELECT id FROM assets WHERE state = 'processing' AND (? IS NULL OR id = ?)"
        with self._database.change():
            rows = self._database.execute(query, asset_id, asset_id).fetchall()
            for row in rows:
                self._database.update("assets", row["id"], released=1)
        return [row["id"] for row in rows]

    def seed(self, state: str, fields: Mapping[str, Any], *, account: int, content: bytes | None) -> Asset:
        """Create an asset in a given state, without an upload and without a charge.

        :param state: Any word; a state of the API sets the fields that belong to it.
        :param fields: Any of :data:`SEEDABLE_FIELDS`.
        :param content: Bytes to store; without them, the asset cannot be downloaded.
        :raises UnknownId: If there is no such project.
        :raises ValueError: If a field does not exist, or a value has the wrong type.
        """
        values = read(SEEDABLE_FIELDS, fields)
        account = as_integer(1, 1_000_000)(account)
        if not isinstance(content, (bytes, type(None))):
            raise ValueError("content must be bytes")
        size = values.pop("size_bytes", None)
        if size is None:
            size = len(content) if content is not None else 1_000_000
        with self._database.change():
            project_id = values.pop("project_id", None) or well_known_id(account)
            self._projects.known(account, project_id)
            asset = self._open(account, project_id, size, values.pop("language", None))
            if content is not None:
                self.path(asset.id).write_bytes(content)
            if state != "pending_upload":
                self._set_kind(asset.id, Kind("audio", "mp3", "audio/mpeg"))
            return self.set_state(asset.id, state, values)

    def set_state(self, asset_id: str, state: str, fields: Mapping[str, Any]) -> Asset:
        """Put an asset into a given state: nothing is charged, nothing is measured again.

        :param state: Any word, also one that the API does not know.
        :param fields: Any of :data:`SETTABLE_FIELDS`; those that belong to the state have defaults.
        :raises UnknownId: If there is no such asset.
        :raises ValueError: If a field does not exist, or a value has the wrong type.
        """
        given = read(SETTABLE_FIELDS, fields)
        state = as_text(1, 64)(state)
        with self._database.change():
            asset = self.known(asset_id)
            duration = asset.duration_seconds or asset.measured_seconds or SEEDED_DURATION
            values: dict[str, Any] = {"duration_seconds": None, "error_code": None, "error_message": None}
            if state in ("ready", "pending_payment"):
                values["duration_seconds"] = duration
            elif state == "failed":
                values["error_code"] = self._choices.failed_error_code
                values["error_message"] = "The media could not be read."
            values |= given
            now = self._clock.now()
            if state != "pending_upload":
                self._uploads.close_of(asset_id, "finished")
            values["measured_seconds"] = values["duration_seconds"] or duration
            values["measured_problem"] = None
            values["unpaid_at"] = now if state == "pending_payment" else None
            self._database.update("assets", asset_id, **values)
            if state == "processing":
                self._enter_processing(asset_id)
            else:
                self._enter(asset_id, state, now)
            return self.known(asset_id)
