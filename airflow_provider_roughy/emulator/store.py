"""The truth: projects, assets, uploads and credits, in SQLite; the media as files beside it.

Every rule of the asset's life is here and nowhere else. Both the HTTP routes and the Python API call this one
object, from any thread. Time is emulator time, in microseconds since the epoch; nothing runs on a timer: what
time has brought about is worked out by :meth:`Store.sweep` before each look.

Killing the process at any moment loses nothing that was replied to: a change is one SQLite transaction, and the
offset of an upload is the size of its file. (No ``fsync``: a power cut is not what this is for.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from .choices import Choices
from .media import Kind, Measured, measure, sniff
from .wire import ApiError, now_microseconds, timestamp, uuid7

#: The documented states of an asset.
STATES = ("pending_upload", "processing", "pending_payment", "ready", "failed")

#: How long a look at an asset that is due waits for its media to be measured.
PROBE_WAIT_SECONDS = 20.0

#: Duration of assets that are put into a state without any bytes.
SEEDED_DURATION = "60.000"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS projects (
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    archived_at INTEGER, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS assets (
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, project_id TEXT NOT NULL, upload_id TEXT NOT NULL,
    type TEXT, state TEXT NOT NULL, extension TEXT, content_type TEXT, size_bytes INTEGER NOT NULL,
    duration_seconds TEXT, language TEXT, error_code TEXT, error_message TEXT, created_at INTEGER NOT NULL,
    processing_at INTEGER, polls INTEGER NOT NULL DEFAULT 0, released INTEGER NOT NULL DEFAULT 0,
    measured_seconds TEXT, measured_problem TEXT, unpaid_at INTEGER);
CREATE INDEX IF NOT EXISTS assets_by_state ON assets (state);
CREATE TABLE IF NOT EXISTS states (asset_id TEXT NOT NULL, state TEXT NOT NULL, at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS states_by_asset ON states (asset_id);
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, asset_id TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, status TEXT NOT NULL, committed INTEGER);
CREATE INDEX IF NOT EXISTS uploads_by_status ON uploads (status, expires_at);
CREATE TABLE IF NOT EXISTS ledger (
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, type TEXT NOT NULL, delta INTEGER NOT NULL,
    asset_id TEXT, grant_id TEXT, stripe_invoice_id TEXT, created_at INTEGER NOT NULL);
"""


@dataclasses.dataclass(frozen=True)
class Project:
    """One project; times in microseconds."""

    id: str
    account: int
    name: str
    state: str
    archived_at: int | None
    created_at: int
    updated_at: int


@dataclasses.dataclass(frozen=True)
class Asset:
    """One asset, with what the API does not show: times in microseconds, and the last eight fields.

    :param size_bytes: as declared at its creation.
    :param processing_at: when its last byte landed.
    :param polls: how often it was seen in ``processing``.
    :param released: whether it was told to settle.
    :param measured_seconds: duration found in the media, not yet shown.
    :param measured_problem: why the media cannot be used.
    :param unpaid_at: when it became ``pending_payment``.
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
        """Whether the media has been looked at."""
        return self.measured_seconds is not None or self.measured_problem is not None

    @property
    def price(self) -> int:
        """Credits for the asset: one for each started minute (credit ledger page)."""
        return math.ceil(Decimal(self.measured_seconds or self.duration_seconds or SEEDED_DURATION) / 60)


@dataclasses.dataclass(frozen=True)
class Upload:
    """One upload session.

    :param status: ``open``, ``finished``, ``cancelled``, ``rejected`` or ``expired``.
    :param committed: the offset to tell while a PATCH is under way whose bytes may yet be discarded.
    """

    id: str
    account: int
    asset_id: str
    size_bytes: int
    expires_at: int
    status: str
    committed: int | None


@dataclasses.dataclass(frozen=True)
class LedgerEntry:
    """One change of a balance; positive credits were added."""

    id: str
    account: int
    type: str
    delta: int
    asset_id: str | None
    grant_id: str | None
    stripe_invoice_id: str | None
    created_at: int


Row = TypeVar("Row", Project, Asset, Upload, LedgerEntry)


@dataclasses.dataclass(frozen=True)
class Progression:
    """How long an asset stays in ``processing``.

    :param kind: ``immediate``, ``seconds``, ``polls`` or ``manual``.
    :param amount: seconds, or number of looks that still find it processing.
    """

    kind: str
    amount: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Progression:
        """Read ``immediate``, ``manual``, ``seconds=<number>`` or ``polls=<count>``."""
        kind, _, amount = text.partition("=")
        try:
            if kind in ("immediate", "manual") and not amount:
                return cls(kind)
            if kind == "seconds" and 0 <= float(amount) < math.inf:
                return cls(kind, float(amount))
            if kind == "polls" and int(amount) >= 0:
                return cls(kind, int(amount))
        except ValueError:
            pass
        raise ValueError(f"progression must be immediate, manual, seconds=<number> or polls=<count>: {text!r}")

    def __str__(self) -> str:
        """Return the text that :meth:`parse` reads."""
        return self.kind if self.kind in ("immediate", "manual") else f"{self.kind}={self.amount:g}"

    def due(self, now: int) -> tuple[str, float]:
        """Return the SQL condition, with its one value, of processing assets that settle by ``now``.

        SQL, since every request asks: a thousand assets that wait must not cost it anything.
        """
        if self.kind == "seconds":
            return "(released = 1 OR processing_at <= ?)", now - round(self.amount * 1_000_000)
        if self.kind == "polls":
            return "(released = 1 OR polls >= ?)", self.amount
        return "(released = 1 OR ?)", int(self.kind == "immediate")

    def settles_at(self, asset: Asset, now: int) -> int:
        """Return when an asset that is due settles: in the past, if nobody has looked since.

        :param now: when it was told to settle, or seen for the last time in ``processing``.
        """
        started = asset.processing_at or asset.created_at
        if self.kind == "immediate":
            return started
        return min(now, started + round(self.amount * 1_000_000)) if self.kind == "seconds" else now


def well_known_id(account: int, *, user: bool = False) -> str:
    """Return the fixed id of an account's first project, or of its user, so that it can be written down.

    :param account: number of the account: 1 belongs to the first API key.
    """
    return f"01900000-0000-7000-{'8001' if user else '8000'}-{account:012d}"


class Store:
    """All state of one emulator.

    :param folder: where it lives; made if need be, and taken up again if it was used before.
    :param accounts: number of accounts (API keys).
    :param balance: credits each account starts with.
    :param progression: see :class:`Progression`.
    :param choices: answers where the documentation is silent.
    """

    def __init__(self, folder: Path, *, accounts: int, balance: int, progression: str, choices: Choices) -> None:
        self.choices = choices
        self.progression = Progression.parse(progression)
        self._bytes = folder / "bytes"
        self._bytes.mkdir(parents=True, exist_ok=True)
        self._accounts = accounts
        self._start_balance = balance
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._prober = ThreadPoolExecutor(max_workers=1, thread_name_prefix="roughy-probe")
        self._probes: dict[str, Future[None]] = {}
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._database = sqlite3.connect(folder / "roughy.sqlite", check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.executescript(_SCHEMA)
        self._open()

    def _open(self) -> None:
        with self._change():
            self._offset = int(self._meta("clock_offset", "0"))
            self.secret = bytes.fromhex(self._meta("secret", secrets.token_hex(32)))
            for account in range(1, self._accounts + 1):
                self._open_account(account)
            for upload in self._rows(Upload, "SELECT * FROM uploads WHERE status = 'open'"):
                self._recover(upload)
            for asset in self._rows(Asset, "SELECT * FROM assets WHERE state = 'processing'"):
                self._start_probe(asset)

    def _open_account(self, account: int) -> None:
        """Give a new account its first project and credits; an account that is known keeps what it has."""
        if self._meta(f"account_{account}", ""):
            return
        now = self.now()
        self._set_meta(f"account_{account}", str(now))
        name = "Emulator" if account == 1 else f"Emulator {account}"
        self._insert(Project(well_known_id(account), account, name, "active", None, now, now))
        if self._start_balance:
            self._book(account, "topup" if self._start_balance > 0 else "adjustment", self._start_balance)

    def _recover(self, upload: Upload) -> None:
        """Finish what a killed process left half done between the file and the database."""
        path = self.path(upload.asset_id)
        if upload.committed is not None:
            if path.exists():
                os.truncate(path, upload.committed)
            self.set_committed(upload.id, None)
            self.forget_kind(upload)
        if self._size(upload.asset_id) >= upload.size_bytes:
            with contextlib.suppress(ApiError):
                self.identify(upload.id)
                self.finish(upload.id)

    def close(self) -> None:
        """Stop measuring and close the database."""
        self._closing.set()
        self._prober.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._database.close()

    def reset(self, *, progression: str) -> None:
        """Empty everything but the first project of each account, and set balance and clock as at the start."""
        with self._change():
            for table in ("projects", "assets", "states", "uploads", "ledger"):
                self._execute(f"DELETE FROM {table}")
            self._execute("DELETE FROM meta WHERE name != 'secret'")
            self._probes.clear()
            shutil.rmtree(self._bytes)
            self._bytes.mkdir()
            self.progression = Progression.parse(progression)
            self._open()

    def opened_at(self, account: int) -> int:
        """Return when an account was made."""
        return int(self._meta(f"account_{account}", "0"))

    # Time

    def now(self) -> int:
        """Return emulator time in microseconds."""
        return now_microseconds() + self._offset

    def advance(self, seconds: float) -> None:
        """Move emulator time on.

        :param seconds: how far; negative moves it back.
        """
        with self._change():
            self._offset += round(seconds * 1_000_000)
            self._set_meta("clock_offset", str(self._offset))
        self.look()

    def set_progression(self, text: str) -> None:
        """Change how long ``processing`` lasts, also for assets that are in it."""
        with self._lock:
            self.progression = Progression.parse(text)

    def due_probes(self) -> list[Future[None]]:
        """Return what is still being measured although its asset is due to settle."""
        with self._lock:
            if not self._probes:
                return []
            due, value = self.progression.due(self.now())
            query = f"SELECT id FROM assets WHERE state = 'processing' AND {due}"
            ids = [row["id"] for row in self._execute(query, value)]
            return [self._probes[each] for each in ids if each in self._probes]

    def look(self) -> None:
        """Bring everything up to now; waits a while for media that is still being measured."""
        self.sweep()
        if probes := self.due_probes():
            wait(probes, timeout=PROBE_WAIT_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """Let time pass: settle what is due, expire uploads, purge what stayed unpaid."""
        with self._change():
            now = self.now()
            expired = "SELECT * FROM uploads WHERE status = 'open' AND expires_at <= ?"
            for upload in self._rows(Upload, expired, now):
                self._close_upload(upload, "expired", keep_asset=self.choices.expired_asset == "kept")
            due, value = self.progression.due(now)
            measured = "(measured_seconds IS NOT NULL OR measured_problem IS NOT NULL)"
            settling = f"SELECT * FROM assets WHERE state = 'processing' AND {measured} AND {due}"
            assets = self._rows(Asset, settling, value)
            # Those that settle at the same moment are charged in the order in which their bytes arrived.
            assets.sort(key=lambda asset: asset.processing_at or asset.created_at)
            for asset in sorted(assets, key=lambda asset: self.progression.settles_at(asset, now)):
                self._settle(asset, self.progression.settles_at(asset, now))
            limit = now - round(self.choices.unpaid_ttl_seconds * 1_000_000)
            purged = "SELECT * FROM assets WHERE state = 'pending_payment' AND unpaid_at <= ?"
            for asset in self._rows(Asset, purged, limit):
                self._remove_asset(asset)

    # Projects

    def create_project(self, account: int, name: str) -> Project:
        """Make a project."""
        with self._change():
            now = self.now()
            project = Project(uuid7(now), account, name, "active", None, now, now)
            self._insert(project)
            return project

    def project(self, account: int, project_id: str) -> Project:
        """Return a project of the account, or raise the 404."""
        with self._lock:
            query = "SELECT * FROM projects WHERE id = ? AND account = ?"
            if found := self._rows(Project, query, project_id, account):
                return found[0]
            raise ApiError(404, "Project not found.")

    def projects(self, account: int, state: str, limit: int, offset: int) -> tuple[list[Project], int]:
        """Return one page of projects, newest first, and the number of all that match."""
        return self._page(Project, "projects", {"account": account, "state": state}, limit, offset)

    def update_project(self, account: int, project_id: str, name: str | None, state: str | None) -> Project:
        """Rename, archive or revive a project; ``None`` leaves a field as it is."""
        with self._change():
            project = self.project(account, project_id)
            now = self.now()
            archived_at = project.archived_at
            if state is not None and state != project.state:
                archived_at = now if state == "archived" else None
            self._execute(
                "UPDATE projects SET name = ?, state = ?, archived_at = ?, updated_at = ? WHERE id = ?",
                name if name is not None else project.name,
                state if state is not None else project.state,
                archived_at,
                now,
                project_id,
            )
            return self.project(account, project_id)

    def delete_project(self, account: int, project_id: str) -> None:
        """Remove a project with all its assets and their bytes, at once and for good (project page)."""
        with self._change():
            self.project(account, project_id)
            for asset in self._rows(Asset, "SELECT * FROM assets WHERE project_id = ?", project_id):
                self._delete_asset(asset)
            self._execute("DELETE FROM projects WHERE id = ?", project_id)

    # Assets

    def create_asset(self, account: int, project_id: str, size_bytes: int, language: str | None) -> Asset:
        """Make an asset and open its upload; 402 unless the balance is positive (credit ledger page)."""
        with self._change():
            project = self.project(account, project_id)
            if project.state == "archived" and not self.choices.archived_project_accepts_assets:
                raise ApiError(409, "Project is archived.")
            if size_bytes > self.choices.max_upload_bytes:
                problem = ("body.size_bytes", f"Input should be at most {self.choices.max_upload_bytes}")
                status = self.choices.over_limit_size_status
                raise ApiError(status, "size_bytes exceeds the cap.", fields=[problem] if status == 422 else [])
            if self.balance(account) <= 0:
                raise ApiError(402, "Your credit balance is used up. Top up to upload more.")
            return self._open_asset(account, project_id, size_bytes, language)

    def _open_asset(self, account: int, project_id: str, size_bytes: int, language: str | None) -> Asset:
        now = self.now()
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
        expires_at = now + round(self.choices.upload_ttl_seconds * 1_000_000)
        self._insert(asset)
        self._insert(Upload(asset.upload_id, account, asset.id, size_bytes, expires_at, "open", None))
        self._note_state(asset.id, asset.state, now)
        return asset

    def asset(self, account: int | None, asset_id: str, *, poll: bool = False) -> Asset:
        """Return an asset, or raise the 404.

        :param account: whose it must be; ``None`` for anybody's.
        :param poll: whether this is a look in the sense of ``progression="polls=n"``.
        """
        with self._change():
            found = self._rows(Asset, "SELECT * FROM assets WHERE id = ?", asset_id)
            if not found or account not in (None, found[0].account):
                raise ApiError(404, "Asset not found.")
            if poll:
                self._count_polls(found)
            return found[0]

    def assets(
        self, account: int, project_id: str | None, state: str | None, limit: int, offset: int
    ) -> tuple[list[Asset], int]:
        """Return one page of assets, newest first, and the number of all that match; counts as a look."""
        with self._change():
            if project_id is not None:
                self.project(account, project_id)
            wanted = {"account": account, "project_id": project_id, "state": state}
            items, total = self._page(Asset, "assets", wanted, limit, offset)
            self._count_polls(items)
            return items, total

    def all_assets(self) -> list[Asset]:
        """Return every asset of every account, oldest first."""
        with self._lock:
            return self._rows(Asset, "SELECT * FROM assets ORDER BY created_at, rowid")

    def delete_asset(self, account: int, asset_id: str) -> None:
        """Remove an asset and its bytes, in any state, at once and for good (delete page)."""
        with self._change():
            self._delete_asset(self.asset(account, asset_id))

    def _delete_asset(self, asset: Asset) -> None:
        if self.choices.refund_on_delete:
            query = "SELECT * FROM ledger WHERE asset_id = ? AND type = 'consume_asset'"
            for entry in self._rows(LedgerEntry, query, asset.id):
                self._book(asset.account, "refund", -entry.delta, asset_id=asset.id)
        self._remove_asset(asset)

    def _remove_asset(self, asset: Asset) -> None:
        self._execute("UPDATE uploads SET status = 'cancelled' WHERE asset_id = ? AND status = 'open'", asset.id)
        self._execute("DELETE FROM assets WHERE id = ?", asset.id)
        self._execute("DELETE FROM states WHERE asset_id = ?", asset.id)
        self._probes.pop(asset.id, None)
        self.path(asset.id).unlink(missing_ok=True)

    def _count_polls(self, assets: Sequence[Asset]) -> None:
        for asset in assets:
            if asset.state == "processing":
                self._execute("UPDATE assets SET polls = polls + 1 WHERE id = ?", asset.id)

    # Uploads

    def upload(self, account: int, upload_id: str) -> Upload:
        """Return an upload of the account in whatever status, or raise the 404."""
        with self._lock:
            query = "SELECT * FROM uploads WHERE id = ? AND account = ?"
            if found := self._rows(Upload, query, upload_id, account):
                return found[0]
            raise ApiError(404, "Upload not found.")

    def offset(self, upload: Upload) -> int:
        """Return how many bytes of an upload are safely on disk."""
        return upload.committed if upload.committed is not None else self._size(upload.asset_id)

    def set_committed(self, upload_id: str, offset: int | None) -> None:
        """Mark an upload's bytes beyond ``offset`` as not counting yet (``None``: all count)."""
        self._execute("UPDATE uploads SET committed = ? WHERE id = ?", offset, upload_id)

    def forget_kind(self, upload: Upload) -> None:
        """Undo :meth:`identify` when nothing of the first chunk is kept."""
        if self._size(upload.asset_id) == 0:
            query = "UPDATE assets SET type = NULL, extension = NULL, content_type = NULL WHERE id = ?"
            self._execute(query, upload.asset_id)

    def identify(self, upload_id: str) -> None:
        """Look at the first bytes of an upload, once there are enough of them.

        :raises ApiError: the 409 when they are neither audio nor video; the upload is over then.
        """
        with self._change():
            upload = self._open_upload(upload_id)
            asset = self.asset(None, upload.asset_id)
            if asset.extension is not None or self._size(asset.id) < self.choices.min_upload_bytes:
                return
            with self.path(asset.id).open("rb") as file:
                kind = sniff(file.read(self.choices.identify_bytes))
            if kind is None:
                self._close_upload(upload, "rejected", keep_asset=self.choices.rejected_upload == "kept")
            else:
                self._set_kind(asset.id, kind)
        if kind is None:
            code = self.choices.unsupported_media_code
            raise ApiError(409, "The uploaded bytes are neither audio nor video.", code=code)

    def finish(self, upload_id: str) -> None:
        """Move the asset on to ``processing``: its last byte has landed."""
        with self._change():
            upload = self._open_upload(upload_id)
            self._execute("UPDATE uploads SET status = 'finished', committed = NULL WHERE id = ?", upload_id)
            self._enter_processing(upload.asset_id)

    def cancel(self, upload: Upload) -> None:
        """Cancel an open upload and remove its asset (cancel page)."""
        with self._change():
            self._close_upload(self._open_upload(upload.id), "cancelled", keep_asset=False)

    def _open_upload(self, upload_id: str) -> Upload:
        query = "SELECT * FROM uploads WHERE id = ? AND status = 'open'"
        if found := self._rows(Upload, query, upload_id):
            return found[0]
        raise ApiError(404, "Upload not found.")

    def _close_upload(self, upload: Upload, status: str, *, keep_asset: bool) -> None:
        self._execute("UPDATE uploads SET status = ?, committed = NULL WHERE id = ?", status, upload.id)
        if keep_asset:
            self.path(upload.asset_id).unlink(missing_ok=True)
        else:
            self._remove_asset(self.asset(None, upload.asset_id))

    def _set_kind(self, asset_id: str, kind: Kind) -> None:
        query = "UPDATE assets SET type = ?, extension = ?, content_type = ? WHERE id = ?"
        self._execute(query, kind.type, kind.extension, kind.content_type, asset_id)

    # Processing

    def _enter_processing(self, asset_id: str) -> None:
        now = self.now()
        query = "UPDATE assets SET processing_at = ?, polls = 0, released = 0 WHERE id = ?"
        self._execute(query, now, asset_id)
        self._enter(asset_id, "processing", now)
        self._start_probe(self.asset(None, asset_id))

    def _start_probe(self, asset: Asset) -> None:
        if not asset.measured and asset.id not in self._probes:
            self._probes[asset.id] = self._prober.submit(self._probe, asset.id)

    def _probe(self, asset_id: str) -> None:
        found = measure(self.path(asset_id), stop=self._closing.is_set)
        if not self._closing.is_set():
            self._note_measured(asset_id, found)

    def _note_measured(self, asset_id: str, found: Measured) -> None:
        with self._change():
            query = "UPDATE assets SET measured_seconds = ?, measured_problem = ? WHERE id = ?"
            self._execute(query, found.seconds, found.problem, asset_id)
            self._probes.pop(asset_id, None)

    def _settle(self, asset: Asset, at: int) -> None:
        if asset.measured_problem is not None:
            code = self.choices.failed_error_code
            query = "UPDATE assets SET error_code = ?, error_message = ? WHERE id = ?"
            self._execute(query, code, asset.measured_problem, asset.id)
            self._enter(asset.id, "failed", at)
            return
        self._execute("UPDATE assets SET duration_seconds = measured_seconds WHERE id = ?", asset.id)
        if not self._charge(asset, at):
            self._execute("UPDATE assets SET unpaid_at = ? WHERE id = ?", at, asset.id)
            self._enter(asset.id, "pending_payment", at)

    def _charge(self, asset: Asset, at: int) -> bool:
        """Debit the price and make the asset ready, or leave both alone when the balance is short."""
        if self.balance(asset.account) < asset.price and not self.choices.partial_debit:
            return False
        self._book(asset.account, "consume_asset", -asset.price, asset_id=asset.id, at=at)
        self._execute("UPDATE assets SET unpaid_at = NULL WHERE id = ?", asset.id)
        self._enter(asset.id, "ready", at)
        return True

    def settle(self, asset_id: str | None = None) -> list[str]:
        """Let processing assets finish now, whatever the progression.

        :param asset_id: one asset, or ``None`` for all.
        :returns: the ids that left ``processing``.
        :raises KeyError: when there is no such asset.
        """
        with self._change():
            if asset_id is not None:
                self.known(asset_id)
            query = "SELECT * FROM assets WHERE state = 'processing'"
            waiting = [a.id for a in self._rows(Asset, query) if asset_id in (None, a.id)]
            for each in waiting:
                self._execute("UPDATE assets SET released = 1 WHERE id = ?", each)
        self.look()
        return waiting

    def known(self, asset_id: str) -> Asset:
        """Return an asset of whatever account, or raise ``KeyError``."""
        with self._lock:
            if found := self._rows(Asset, "SELECT * FROM assets WHERE id = ?", asset_id):
                return found[0]
            raise KeyError(asset_id)

    def seed(self, state: str, *, account: int = 1, content: bytes | None = None, **fields: Any) -> Asset:
        """Put a new asset straight into a state, without an upload and without a charge.

        :param state: any word; the API's own states get the fields that belong to them.
        :param content: bytes to store; without them the asset has none and cannot be downloaded.
        :param fields: any of ``project_id``, ``size_bytes``, ``language``, ``type``, ``extension``,
            ``content_type``, ``duration_seconds``, ``error_code``, ``error_message``.
        """
        size = fields.pop("size_bytes", None)
        if size is None:
            size = len(content) if content is not None else 1_000_000
        with self._change():
            project_id = fields.pop("project_id", None) or well_known_id(account)
            self.project(account, project_id)
            asset = self._open_asset(account, project_id, size, fields.pop("language", None))
            if content is not None:
                self.path(asset.id).write_bytes(content)
            if state != "pending_upload":
                self._set_kind(asset.id, Kind("audio", "mp3", "audio/mpeg"))
            self.set_state(asset.id, state, **fields)
            return self.known(asset.id)

    def set_state(self, asset_id: str, state: str, **fields: Any) -> Asset:
        """Put an asset into a state by decree: nothing is charged, nothing is measured again.

        :param state: any word, also one the API does not know.
        :param fields: any of ``type``, ``extension``, ``content_type``, ``duration_seconds``, ``error_code``,
            ``error_message``; those that belong to the state have defaults.
        :raises KeyError: when there is no such asset.
        """
        allowed = ("type", "extension", "content_type", "duration_seconds", "error_code", "error_message")
        if unknown := set(fields) - set(allowed):
            raise ValueError(f"unknown field {', '.join(sorted(unknown))}; known: {', '.join(allowed)}")
        with self._change():
            asset = self.known(asset_id)
            duration = asset.duration_seconds or asset.measured_seconds or SEEDED_DURATION
            values: dict[str, Any] = {"duration_seconds": None, "error_code": None, "error_message": None}
            if state in ("ready", "pending_payment"):
                values["duration_seconds"] = duration
            elif state == "failed":
                values["error_code"] = self.choices.failed_error_code
                values["error_message"] = "The media could not be read."
            values |= fields
            if values["duration_seconds"] is not None:
                values["duration_seconds"] = str(Decimal(str(values["duration_seconds"])))
            for name, value in values.items():
                self._execute(f"UPDATE assets SET {name} = ? WHERE id = ?", value, asset_id)
            now = self.now()
            if state != "pending_upload":
                finished = "UPDATE uploads SET status = 'finished' WHERE asset_id = ? AND status = 'open'"
                self._execute(finished, asset_id)
            self._execute(
                "UPDATE assets SET measured_seconds = ?, measured_problem = NULL, unpaid_at = ? WHERE id = ?",
                values["duration_seconds"] or duration,
                now if state == "pending_payment" else None,
                asset_id,
            )
            if state == "processing":
                self._enter_processing(asset_id)
            else:
                self._enter(asset_id, state, now)
            return self.known(asset_id)

    def _enter(self, asset_id: str, state: str, at: int) -> None:
        self._execute("UPDATE assets SET state = ? WHERE id = ?", state, asset_id)
        self._note_state(asset_id, state, at)

    def _note_state(self, asset_id: str, state: str, at: int) -> None:
        self._execute("INSERT INTO states VALUES (?, ?, ?)", asset_id, state, at)

    def states(self, asset_id: str) -> list[tuple[str, str]]:
        """Return the states an asset has been in, oldest first, with the time each was entered."""
        with self._lock:
            query = "SELECT state, at FROM states WHERE asset_id = ? ORDER BY rowid"
            return [(row["state"], timestamp(row["at"])) for row in self._execute(query, asset_id)]

    # Credits

    def balance(self, account: int) -> int:
        """Return the spendable credits: the sum of all entries."""
        with self._lock:
            query = "SELECT COALESCE(SUM(delta), 0) FROM ledger WHERE account = ?"
            return int(self._execute(query, account).fetchone()[0])

    def history(self, account: int, limit: int, offset: int) -> tuple[list[LedgerEntry], int]:
        """Return one page of ledger entries, newest first, and the number of all."""
        return self._page(LedgerEntry, "ledger", {"account": account}, limit, offset)

    def top_up(self, credits: int, account: int = 1) -> None:
        """Add credits as a paid top-up, and activate unpaid assets, oldest first (credit ledger page)."""
        if credits <= 0:
            raise ValueError("a top-up must be positive")
        self.sweep()
        with self._change():
            now = self.now()
            self._book(account, "topup", credits, invoice=f"in_{secrets.token_hex(8)}")
            query = "SELECT * FROM assets WHERE state = 'pending_payment' AND account = ? ORDER BY created_at, rowid"
            for asset in self._rows(Asset, query, account):
                if not self._charge(asset, now) and not self.choices.activation_skips_unaffordable:
                    break

    def adjust(self, balance: int, account: int = 1) -> None:
        """Set the balance by an ``adjustment`` entry; unlike a top-up it activates nothing."""
        with self._change():
            if delta := balance - self.balance(account):
                self._book(account, "adjustment", delta)

    def _book(
        self,
        account: int,
        kind: str,
        delta: int,
        *,
        asset_id: str | None = None,
        invoice: str | None = None,
        at: int | None = None,
    ) -> None:
        at = self.now() if at is None else at
        grant = None if kind in ("consume_asset", "refund") else uuid7(at)
        self._insert(LedgerEntry(uuid7(at), account, kind, delta, asset_id, grant, invoice, at))

    # Bytes

    def path(self, asset_id: str) -> Path:
        """Return where the bytes of an asset are, or would be."""
        return self._bytes / asset_id

    def _size(self, asset_id: str) -> int:
        try:
            return self.path(asset_id).stat().st_size
        except FileNotFoundError:
            return 0

    def sha256(self, asset_id: str) -> str:
        """Return the hex digest of the bytes on disk; hashed outside the lock, and remembered."""
        digest = hashlib.sha256()
        try:
            with self.path(asset_id).open("rb") as file:
                facts = os.fstat(file.fileno())
                key = (asset_id, facts.st_size, facts.st_mtime_ns)
                if key not in self._hashes:
                    while block := file.read(1 << 20):
                        digest.update(block)
                    self._hashes[key] = digest.hexdigest()
                return self._hashes[key]
        except FileNotFoundError:
            return digest.hexdigest()

    # Database

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Hold the lock and make one transaction of the outermost block; an error undoes all of it."""
        with self._lock:
            if self._database.in_transaction:
                yield
                return
            self._database.execute("BEGIN")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _execute(self, query: str, *values: object) -> sqlite3.Cursor:
        with self._lock:
            return self._database.execute(query, values)

    def _rows(self, kind: type[Row], query: str, *values: object) -> list[Row]:
        return [kind(**dict(row)) for row in self._execute(query, *values).fetchall()]

    def _insert(self, row: Project | Asset | Upload | LedgerEntry) -> None:
        tables = {Project: "projects", Asset: "assets", Upload: "uploads", LedgerEntry: "ledger"}
        values = dataclasses.asdict(row)
        marks = ", ".join("?" * len(values))
        columns = ", ".join(values)
        self._execute(f"INSERT INTO {tables[type(row)]} ({columns}) VALUES ({marks})", *values.values())

    def _page(
        self, kind: type[Row], table: str, wanted: Mapping[str, object], limit: int, offset: int
    ) -> tuple[list[Row], int]:
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given)
        with self._lock:
            total = self._execute(f"SELECT COUNT(*) FROM {table} WHERE {where}", *given.values()).fetchone()[0]
            # The row number breaks ties of created_at (undocumented, so: the order of making).
            query = f"SELECT * FROM {table} WHERE {where} ORDER BY created_at DESC, rowid DESC LIMIT ? OFFSET ?"
            return self._rows(kind, query, *given.values(), limit, offset), int(total)

    def _meta(self, name: str, default: str) -> str:
        found = self._execute("SELECT value FROM meta WHERE name = ?", name).fetchone()
        if found is None and default:
            self._set_meta(name, default)
        return str(found["value"]) if found is not None else default

    def _set_meta(self, name: str, value: str) -> None:
        self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)
