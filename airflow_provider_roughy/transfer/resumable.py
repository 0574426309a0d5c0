"""Uploads that a later try of a task can resume: created, recorded, resumed, confirmed, and discarded if no try can.

Nothing here depends on Airflow: one try leaves an :class:`UploadState` to the next in a :class:`StateStore`, such as
Airflow's task state store. ``tus.py`` decides whether an upload is complete or dead; ``DurableUpload._discard`` decides
what may be deleted.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_roughy import api
from airflow_provider_roughy.api import decode
from airflow_provider_roughy.exceptions import (
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyError,
    RoughyNotFoundError,
    RoughyProtocolError,
    RoughyServerError,
    RoughySourceError,
    RoughyUnconfirmedUploadError,
    RoughyUnreachableError,
    RoughyUploadClosedError,
    RoughyUploadError,
)
from airflow_provider_roughy.http import interrupt
from airflow_provider_roughy.http.retry import Backoff
from airflow_provider_roughy.instruments import UPLOAD_DURATION
from airflow_provider_roughy.lifecycle import ASSET, Arrival, Outcome, Verdict
from airflow_provider_roughy.logs import Log
from airflow_provider_roughy.transfer.progress import Progress, bytes_in_words
from airflow_provider_roughy.transfer.storage import VERSION_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_roughy.api import RoughyAsset
    from airflow_provider_roughy.http.client import Client
    from airflow_provider_roughy.transfer.source import Reader, Source
    from airflow_provider_roughy.transfer.tus import RoughyUploader

#: Seconds after which an upload whose end Roughy has not noticed is cancelled and replaced by a new one.
_MAX_UNNOTICED_SECONDS = 24 * 3600.0

#: The key of an :class:`UploadState` in a :class:`StateStore`.
_STATE_KEY = "roughy_upload"
#: Fields of an :class:`UploadState` that are stored under another name, which earlier releases read.
_STORED_NAMES = {"identity": "wanted"}

_log = logging.getLogger(__name__)


class StateStore(Protocol):
    """Stores what one try leaves to the next, as plain JSON without secrets."""

    def get(self, key: str) -> Any:
        """Return what is stored under a key, or ``None``."""

    def set(self, key: str, value: Any) -> None:
        """Store a value under a key."""


def open_uploader(
    client: Client,
    asset: RoughyAsset,
    reader: Reader,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    fresh: bool = False,
    all_sent: bool = False,
    acknowledged: int = 0,
    confirm: bool = True,
    on_all_acknowledged: Callable[[], None] = lambda: None,
    log: Log = _log,
) -> RoughyUploader:
    """Return an uploader of a source to an asset. Call its ``upload()``.

    :param client: Sends the requests.
    :param asset: An asset that was just read or created.
    :param reader: The open source.
    :param on_progress: Called with the bytes sent so far and the total, about once a MiB.
    :param fresh: Whether the asset was just created, so that the offset of its upload is 0.
    :param all_sent: Whether Roughy may have all bytes from an earlier transfer.
    :param acknowledged: Bytes that Roughy acknowledged in earlier transfers.
    :param confirm: Whether to read the asset when Roughy has acknowledged the last byte.
    :param on_all_acknowledged: Called when Roughy has acknowledged all bytes, before the asset is read.
    :param log: The logger.
    :raises RoughyUploadClosedError: If the asset waits for bytes and has no upload.
    :raises RoughyConfigurationError: If all its bytes have arrived.
    """
    # Not at the top: tuspy loads two HTTP libraries.
    from airflow_provider_roughy.transfer.tus import RoughyUploader

    if asset.upload_url is None:
        if Arrival.of(asset) is Arrival.CLOSED:
            raise RoughyUploadClosedError(
                f"Asset {asset.id} is {asset.state}, but has no upload that could receive its bytes. A new asset is "
                "needed; RoughyCreateUploadOperator and RoughyIngestOperator create it on a retry",
                offset=0,
            )
        raise RoughyConfigurationError(
            f"Asset {asset.id} is {asset.state}: all its bytes have arrived, and it takes no others. Upload another "
            "recording to a new asset"
        )
    return RoughyUploader(
        client,
        asset.upload_url,
        reader,
        look=lambda: Arrival.of(client.once(api.get_asset(asset.id))),
        fresh=fresh,
        all_sent=all_sent,
        acknowledged=acknowledged,
        confirm=confirm,
        on_progress=on_progress,
        on_all_acknowledged=on_all_acknowledged,
        log=log,
        asset_id=asset.id,
    )


class DurableUpload:
    """Uploads one source to Roughy, over as many tries as that takes.

    A try resumes the upload of the one before if there is a state store and nothing has changed. Otherwise it starts a
    new upload. If a try fails, its asset is kept for a later one that can resume it, and discarded otherwise. An asset
    is never discarded if Roughy may have all its bytes, if the API key was rejected, or if the caller named the asset.

    :param client: Sends the requests.
    :param source: The source.
    :param memory: The store of what one try leaves to the next; ``None`` if there is no next try.
    :param confirm: Whether to read the asset when Roughy has acknowledged the last byte. If not, the caller has to, for
        many assets at a time.
    :param on_progress: Called with the bytes sent so far and the total, about once a MiB. By default, the progress is
        logged.
    :param on_arrival: Called with the asset's id when all bytes have arrived.
    :param log: The logger, of the standard library or of structlog.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        *,
        memory: StateStore | None = None,
        confirm: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
        on_arrival: Callable[[str], None] = lambda asset_id: None,
        log: Log = _log,
    ) -> None:
        self._client = client
        self._source = source
        self._memory = memory
        # Reentrant, as a kill interrupts the thread that holds it.
        self._setting = threading.RLock()
        #: The state that an earlier try left, or that this one leaves to the next.
        self._state: UploadState | None = None
        self._confirm = confirm
        self._on_progress = on_progress
        self._on_arrival = on_arrival
        self._log = log
        #: The asset that receives bytes now, and its uploader.
        self._asset: RoughyAsset | None = None
        self._uploader: RoughyUploader | None = None
        #: Whether this try created the asset.
        self._fresh = False
        #: Whether a later try finds the asset in the state store.
        self._recorded = False
        #: Whether the caller named the asset.
        self._named = False
        #: Whether abandon() has discarded the asset during the upload.
        self._abandoned = False

    def run(self, project_id: str, language: str | None = None) -> str:
        """Upload to the asset of an earlier try, or to a new one.

        :param project_id: The project of a new asset.
        :param language: The language spoken, two letters of ISO 639-1; ``None`` lets Roughy detect it.
        :returns: The asset's id.
        :raises RoughyError: If the upload failed.
        """
        self._fresh = self._named = False
        identity = {**self._source.fingerprint, "project_id": project_id, "language": language}
        earlier = self._find_earlier(identity)
        if earlier is not None:
            self._recorded = True
            if self._send_earlier(earlier):
                return earlier.id
        return self._start(project_id, language, identity)

    def _send_earlier(self, asset: RoughyAsset) -> bool:
        """Send what is missing of an earlier try's upload.

        :param asset: Its asset.
        :returns: ``False`` if that upload is gone and a new one is needed.
        """
        try:
            self._resume(asset)
        except (RoughyNotFoundError, RoughyUploadClosedError) as error:
            self._log.info(
                "Uploading %s to a new asset: the upload to asset %s does not exist any more: %s",
                self._source.uri,
                asset.id,
                error,
            )
            return False
        except RoughyUnconfirmedUploadError:
            if not self._is_overdue():
                raise
            self._log.warning(
                "Cancelling the upload of %s to asset %s, to upload it to a new asset: for a day, Roughy has not "
                "confirmed that all bytes have arrived",
                self._source.uri,
                asset.id,
            )
            left = self._discard(self._client, asset, outright=True)
            if left is Arrival.ARRIVED:
                self._on_arrival(asset.id)
            elif left is not None:
                raise
            return left is not None
        return True

    def resume(self, asset_id: str) -> str:
        """Upload to an asset that the caller names, from the offset of its upload.

        :param asset_id: The asset. If its bytes have arrived, nothing is sent.
        :returns: The asset's id.
        :raises RoughyAssetFailedError: If the asset has failed.
        :raises RoughySourceError: If an earlier try has sent bytes of another file.
        :raises RoughyError: If the upload failed.
        """
        asset = self._read(asset_id)
        Verdict.of(ASSET, asset).raise_for_failure("return")
        self._fresh, self._named = False, True
        state = self._read_state()
        if state is not None and state.asset_id == asset.id:
            self._state, self._recorded = self._completed(state, asset), True
            changed = self._changed_revision(state)
            if changed and Arrival.of(asset) is not Arrival.ARRIVED:
                raise RoughySourceError(
                    f"Source {self._source.uri} was replaced since its upload to asset {asset.id} began ({changed} "
                    "changed): restore that file, or upload this one to a new asset"
                )
        return self._resume(asset)

    def abandon(self) -> None:
        """Keep the current upload for a later try, or discard it if none can find it. For signal handlers."""
        if self._asset is None or self._why_kept(None) is not None:
            return
        self._abandoned = True
        from airflow_provider_roughy.http.client import Client

        # The client of the upload may be in the middle of a request.
        with Client(self._client.settings) as client:
            self._discard(client, self._asset)

    def _find_earlier(self, identity: dict[str, Any]) -> RoughyAsset | None:
        """Return the asset of an earlier try if its upload can be resumed; ``None`` to start a new upload.

        Retries, cleared tasks, killed workers and mapped tasks whose list has shifted all lead here.

        :param identity: The identity of the recording.
        """
        state = self._read_state()
        if state is None:
            return None
        try:
            asset = self._read(state.asset_id)
        except RoughyNotFoundError:
            self._log.info(
                "Uploading %s to a new asset: asset %s of an earlier try does not exist any more",
                self._source.uri,
                state.asset_id,
            )
            return None
        arrival = Arrival.of(asset)
        if not self._is_same(state.identity, identity):
            changed = _differing(state.identity, identity)
            self._log.info(
                "Uploading %s to a new asset: asset %s of an earlier try is of another recording (other %s)",
                self._source.uri,
                asset.id,
                changed,
            )
            if arrival is not Arrival.ARRIVED and not state.all_sent:
                self._discard(self._client, asset)
            return None
        if Verdict.of(ASSET, asset).outcome is Outcome.FAILED:
            self._log.info(
                "Uploading %s to a new asset: asset %s of an earlier try has failed at Roughy (%s)",
                self._source.uri,
                asset.id,
                asset.error_code or "Roughy gave no reason",
            )
            return None
        self._state = self._completed(state, asset)
        changed = self._changed_revision(state)
        if changed and arrival is not Arrival.ARRIVED:
            return self._replace(asset, changed)
        return asset

    def _is_same(self, earlier: dict[str, Any], identity: dict[str, Any]) -> bool:
        """Return whether an identity of an earlier try, maybe of an earlier release, is that of this source.

        :param earlier: The identity that the earlier try left.
        :param identity: The identity of this source.
        """
        if earlier == identity:
            return True
        versions = self._source.versions
        old, new = ({n: v for n, v in each.items() if n not in VERSION_NAMES} for each in (earlier, identity))
        named = [name for name in VERSION_NAMES if name in earlier]
        return old == new and bool(named) and all(earlier[name] == versions.get(name) for name in named)

    def _replace(self, asset: RoughyAsset, changed: str) -> RoughyAsset | None:
        """Discard an asset that must not be resumed: the source is the same recording, but may have other bytes.

        :param asset: The asset.
        :param changed: What has changed.
        :returns: The asset, if all its bytes have arrived.
        :raises RoughyUnconfirmedUploadError: If Roughy may have all bytes and the upload cannot be cancelled.
        """
        self._log.info(
            "Cancelling the upload to asset %s: %s may have other bytes now (%s changed)",
            asset.id,
            self._source.uri,
            changed,
        )
        left = self._discard(self._client, asset, outright=self._is_overdue())
        if left is Arrival.ARRIVED:
            return asset
        if left is not None and self._state is not None and self._state.all_sent:
            raise self._unconfirmed(asset, "its upload could not be cancelled")
        return None

    def _read_state(self) -> UploadState | None:
        return None if self._memory is None else UploadState.read(self._memory.get(_STATE_KEY))

    def _completed(self, state: UploadState, asset: RoughyAsset) -> UploadState:
        """Add what an earlier version of this package did not store."""
        if state.all_sent and state.all_sent_at is None:
            now, created_at = time.time(), decode.timestamp(asset.created_at)
            # An upload stays open for about a day, so its last byte was sent within it.
            sent_at = now if created_at is None else created_at.timestamp() + _MAX_UNNOTICED_SECONDS
            state = replace(state, all_sent_at=min(now, sent_at))
        return state if state.revision else replace(state, revision=self._source.revision)

    def _changed_revision(self, state: UploadState) -> str:
        """Return which fields of the revision have changed since an earlier try; an empty text if none has."""
        return _differing(state.revision, self._source.revision) if state.revision else ""

    def _is_overdue(self) -> bool:
        """Whether Roughy may have had all bytes for a day without confirming it."""
        since = None if self._state is None else self._state.all_sent_at
        return since is not None and time.time() - since >= _MAX_UNNOTICED_SECONDS

    def _unconfirmed(self, asset: RoughyAsset, why: str) -> RoughyUnconfirmedUploadError:
        return RoughyUnconfirmedUploadError(
            f"Asset {asset.id} is {asset.state}, and Roughy may have all {self._source.size} bytes of "
            f"{self._source.uri}: {why}. A retry of the task reads the asset again; nothing is uploaded twice",
            offset=self._source.size,
        )

    def _start(self, project_id: str, language: str | None, identity: dict[str, Any]) -> str:
        asset = self._create(project_id, language, identity)
        with self._cleaning_up(asset):
            # Directly after the POST: a worker that dies in between leaves an asset of unknown id.
            self._set(_STATE_KEY, UploadState(asset.id, identity, self._source.revision).to_dict())
            self._recorded = self._memory is not None
            self._send(asset)
        self._on_arrival(asset.id)
        return asset.id

    def _create(self, project_id: str, language: str | None, identity: dict[str, Any]) -> RoughyAsset:
        asset = self._post(project_id, language)
        self._fresh, self._recorded, self._uploader = True, False, None
        self._state = UploadState(asset.id, identity, self._source.revision)
        size = bytes_in_words(self._source.size)
        self._log.info("Created asset %s in project %s for %s (%s)", asset.id, project_id, self._source.uri, size)
        return asset

    def _post(self, project_id: str, language: str | None) -> RoughyAsset:
        try:
            return self._client.run(api.create_asset(project_id, self._source.size, language=language))
        except (RoughyProtocolError, RoughyServerError, RoughyUnreachableError) as error:
            if not isinstance(error, RoughyUnreachableError) or error.sent:
                # No list can identify it: an empty asset has neither name nor size, and may be another task's.
                self._log.warning(
                    "Roughy may have created an asset in project %s for %s without this task receiving its id. That "
                    "asset would stay empty in state pending_upload, and costs nothing: %s",
                    project_id,
                    self._source.uri,
                    error,
                )
            raise

    def _resume(self, asset: RoughyAsset) -> str:
        if Arrival.of(asset) is Arrival.ARRIVED:
            self._log.info(
                "Skipped the upload to asset %s, which is %s: all its bytes have arrived", asset.id, asset.state
            )
        else:
            self._log.info("Resuming the upload of %s to asset %s", self._source.uri, asset.id)
            with self._cleaning_up(asset):
                if Arrival.of(asset) is Arrival.CLOSED and self._state is not None and self._state.all_sent:
                    raise self._unconfirmed(asset, "it has no upload whose offset could be read")
                self._send(asset)
        self._on_arrival(asset.id)
        return asset.id

    def _read(self, asset_id: str) -> RoughyAsset:
        """Read an asset, again if it waits for bytes without an upload: its state may be about to change."""
        backoff = Backoff(tries=3)
        while True:
            asset = self._client.run(api.get_asset(asset_id))
            if Arrival.of(asset) is not Arrival.CLOSED:
                return asset
            pause = backoff.pause_after(RoughyProtocolError(""))
            if pause is None:
                return asset
            self._log.warning(
                "Asset %s is %s and has no upload; reading it again in %.1f s", asset_id, asset.state, pause
            )
            interrupt.pause(pause)

    def _send(self, asset: RoughyAsset) -> None:
        state, began = self._state, time.monotonic()
        with Progress(self._log, f"Asset {asset.id}", self._show_progress) as progress:
            with self._source.open() as reader:
                self._uploader = open_uploader(
                    self._client,
                    asset,
                    reader,
                    self._on_progress or progress,
                    fresh=self._fresh,
                    all_sent=state is not None and state.all_sent,
                    acknowledged=0 if state is None else min(state.acknowledged, self._source.size),
                    confirm=self._confirm,
                    on_all_acknowledged=lambda: self._remember(self._source.size, all_sent=True),
                    log=self._log,
                )
                self._uploader.upload()
            UPLOAD_DURATION.record(time.monotonic() - began)
            if self._on_progress is None:
                progress.finish(self._source.size)

    @contextmanager
    def _cleaning_up(self, asset: RoughyAsset) -> Iterator[None]:
        """Keep or discard the asset if the body fails. No error is raised if all its bytes have arrived."""
        self._asset = asset
        try:
            yield
        except BaseException as error:  # A kill and a timeout are not of class Exception.
            kept, left = self._why_kept(error), None
            if self._abandoned:
                pass
            elif kept is None:
                left = self._discard(self._client, asset, lost=isinstance(error, RoughyUploadClosedError))
            else:
                self._log.info("Keeping the partial upload of %s to asset %s: %s", self._source.uri, asset.id, kept)
                whole = self._may_be_whole(error)
                # Not after a kill, which may have interrupted a call of the same store.
                if self._uploader is not None and (whole or isinstance(error, Exception)):
                    self._remember(self._uploader.reached, all_sent=whole)
            if self._abandoned and isinstance(error, RoughyError):
                # Airflow 3 calls on_kill() and lets the task continue. A new try is possible.
                raise RoughyUploadError(
                    f"The upload of {self._source.uri} to asset {asset.id} was discarded, as its task was killed; "
                    "another try uploads it to a new asset",
                    offset=0,
                ) from error
            failed = isinstance(error, RoughySourceError) or not isinstance(error, RoughyError)
            if failed or left is not Arrival.ARRIVED:
                raise
        finally:
            self._asset = self._uploader = None

    def _remember(self, acknowledged: int, *, all_sent: bool) -> None:
        """Store how far the upload is, for a later try.

        :param acknowledged: Bytes that Roughy has acknowledged.
        :param all_sent: Whether Roughy may have all bytes.
        """
        before = self._state
        if self._memory is None or before is None or not self._recorded:
            return
        since = before.all_sent_at or (time.time() if all_sent else None)
        self._state = replace(
            before, acknowledged=acknowledged, all_sent=all_sent or before.all_sent, all_sent_at=since
        )
        if self._state == before:
            return
        try:
            self._set(_STATE_KEY, self._state.to_dict())
        except Exception as err:  # Airflow's API may be down, which must not end the upload.
            self._log.warning(
                "Storing the progress of the upload of %s to asset %s in Airflow's task state failed; the next try "
                "asks Roughy for it: %s",
                self._source.uri,
                before.asset_id,
                err,
            )

    def _show_progress(self, done: int, total: int) -> None:
        """Store the progress, which Airflow's UI shows."""
        self._set("roughy_progress", {"bytes": done, "of": total, "percent": 100 * done // total})

    def _set(self, key: str, value: Any) -> None:
        """Store a value, in one thread at a time: Airflow's store has one channel for all threads of a task."""
        if self._memory is not None:
            with self._setting:
                self._memory.set(key, value)

    def _why_kept(self, error: BaseException | None) -> str | None:
        """Return why the asset is kept, or ``None`` if it is to be discarded.

        :param error: The error that ended the upload; ``None`` for a kill.
        """
        if self._named:
            return "`asset_id` names it; a later try can resume it"
        if self._may_be_whole(error):
            return "Roughy may have all its bytes"
        if isinstance(error, RoughyAuthenticationError):
            return "with a valid API key, `asset_id` resumes it"
        hopeless = isinstance(error, RoughyError) and (error.final or isinstance(error, RoughyUploadClosedError))
        if self._recorded and not hopeless:
            return "the next try resumes it"
        return None

    def _may_be_whole(self, error: BaseException | None) -> bool:
        acknowledged = self._uploader is not None and self._uploader.acknowledged
        return acknowledged or isinstance(error, RoughyUnconfirmedUploadError)

    def _discard(
        self, client: Client, asset: RoughyAsset, *, lost: bool = False, outright: bool = False
    ) -> Arrival | None:
        """Remove an asset that no later try can resume, unless its bytes have arrived.

        The asset is read first. Then its upload is cancelled, which also removes the asset, and cannot affect one that
        is complete. Only an asset that this try created, and whose last byte it never sent, is deleted directly.

        :param client: Sends the requests.
        :param asset: The asset.
        :param lost: Whether its upload seems to be gone. If the asset shows that it is open, a later try decides.
        :param outright: Whether to delete the asset if its upload cannot be cancelled.
        :returns: The state of the upload of an asset that is left; ``None`` if none is left.
        """
        end_was_sent = self._uploader.end_was_sent if self._uploader is not None else not self._fresh
        removals = [] if asset.upload_url is None else [api.cancel_upload(asset.upload_url)]
        if outright or (self._fresh and not end_was_sent):
            removals.append(api.delete_asset(asset.id))
        problem: object = "it has no open upload that could be cancelled"
        arrival = Arrival.OPEN
        for removal in (*removals, None):
            try:
                arrival = Arrival.of(client.run(api.get_asset(asset.id)))
                if arrival is Arrival.ARRIVED:
                    self._log.info("Keeping asset %s: all its bytes have arrived", asset.id)
                    return arrival
                if lost and self._fresh and self._recorded and arrival is Arrival.OPEN:
                    self._log.info("Keeping asset %s: its upload is open", asset.id)
                    return arrival
            except RoughyNotFoundError:
                self._log.info("Asset %s does not exist any more", asset.id)
                return None
            except RoughyError as err:
                problem = err
                break
            if removal is None:
                break
            try:
                client.run(removal)
            except RoughyError as err:
                problem = err
                continue
            self._log.info("Discarded asset %s and its upload", asset.id)
            return None
        self._log.warning(
            "Discarding asset %s and its incomplete upload of %s failed. It stays in state pending_upload, costs "
            "nothing, and may be deleted: %s",
            asset.id,
            self._source.uri,
            problem,
        )
        return arrival


@dataclass(frozen=True)
class UploadState:
    """What one try of an upload leaves to the next. Airflow stores it in plain text, so it contains no secret.

    :param asset_id: The asset that receives the bytes.
    :param identity: The identity of the recording: the fingerprint of the source, ``project_id`` and ``language``;
        stored as ``wanted``.
    :param revision: The revision of the source whose bytes were sent; empty if it is not known.
    :param acknowledged: Bytes that Roughy has acknowledged.
    :param all_sent: Whether Roughy may have all bytes: it acknowledged them, or the reply to the last one is missing.
    :param all_sent_at: Since when, in seconds since the epoch; ``None`` if ``all_sent`` is false or it is not known.
    :param schema_version: The version of these fields. A reader ignores fields that it does not know.
    """

    asset_id: str
    identity: dict[str, Any]
    revision: dict[str, Any] = field(default_factory=dict)
    acknowledged: int = 0
    all_sent: bool = False
    all_sent_at: float | None = None
    schema_version: int = 1

    @classmethod
    def read(cls, value: Any) -> UploadState | None:
        """Read what an earlier try left; ``None`` if it is not an upload state. A field of a wrong type is ignored.

        :param value: Plain JSON.
        """
        match value:
            case {"asset_id": str(), "wanted": dict(), **more}:
                types = {"revision": dict, "acknowledged": int, "all_sent": bool, "all_sent_at": int | float}
                known: dict[str, Any] = {n: more[n] for n, kind in types.items() if isinstance(more.get(n), kind)}
                return cls(value["asset_id"], value["wanted"], **known)
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {_STORED_NAMES.get(name, name): getattr(self, name) for name in self.__dataclass_fields__}


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the names of the fields whose values differ, separated by commas."""
    return ", ".join(name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name))
