"""An upload that outlives its task: created, remembered, resumed, verified, and discarded if nobody can go on with it.

Nothing here knows Airflow: what one start leaves to the next goes into any :class:`Memory`, such as Airflow's task
state store. Whether bytes have arrived, and whether an upload is dead, the transfer decides (``tus.py``); what may be
deleted is decided here, in ``DurableUpload._discard``.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_roughy import api
from airflow_provider_roughy.exceptions import (
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyError,
    RoughyNotFoundError,
    RoughyProtocolError,
    RoughyServerError,
    RoughyUnconfirmedUploadError,
    RoughyUnreachableError,
    RoughyUploadClosedError,
    RoughyUploadError,
)
from airflow_provider_roughy.lifecycle import ASSET, Arrival, Outcome, Verdict
from airflow_provider_roughy.progress import Progress, bytes_in_words
from airflow_provider_roughy.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_roughy.api import RoughyAsset
    from airflow_provider_roughy.client import Client
    from airflow_provider_roughy.source import Reader, Source
    from airflow_provider_roughy.tus import RoughyUploader

_log = logging.getLogger(__name__)


class Memory(Protocol):
    """Where one start of an upload leaves word for the next; what is put there is plain JSON and no secret."""

    def get(self, key: str) -> Any:
        """Return what was kept under a key, or ``None``."""

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""


def open_uploader(
    client: Client,
    asset: RoughyAsset,
    reader: Reader,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    fresh: bool = False,
    all_sent: bool = False,
    confirm: bool = True,
    log: Any = _log,
) -> RoughyUploader:
    """Return what moves a source's bytes to an asset; its ``upload()`` does so.

    :param client: Sends the requests.
    :param asset: An asset as it was just read or made.
    :param reader: The open source.
    :param on_progress: Called with the bytes handed over so far and the bytes in all, about once a MiB.
    :param fresh: Whether the asset was just created, so that its upload stands at 0.
    :param all_sent: Whether an earlier transfer to it ended unconfirmed.
    :param confirm: Whether Roughy is asked if an acknowledged upload is complete.
    :param log: Where each pause is told.
    :raises RoughyUploadClosedError: If the asset waits for bytes and has no upload that could take them.
    :raises RoughyConfigurationError: If all its bytes have arrived.
    """
    # tuspy loads two HTTP libraries.
    from airflow_provider_roughy.tus import RoughyUploader

    if asset.upload_url is None:
        if Arrival.of(asset) is Arrival.CLOSED:
            raise RoughyUploadClosedError(
                f"Asset {asset.id} is {asset.state}, but there is no upload that its bytes could go to", offset=0
            )
        raise RoughyConfigurationError(f"Asset {asset.id} is {asset.state}: it has no open upload")
    return RoughyUploader(
        client,
        asset.upload_url,
        reader,
        look=lambda: Arrival.of(client.once(api.get_asset(asset.id))),
        fresh=fresh,
        all_sent=all_sent,
        confirm=confirm,
        on_progress=on_progress,
        log=log,
    )


class DurableUpload:
    """Brings one source to Roughy, in as many starts as that takes.

    A start goes on where the one before it ended if there is a memory and nothing has changed; otherwise it starts
    anew. If it fails, its asset stays where a later start will go on with it, and is discarded otherwise; but never
    while Roughy may have all its bytes, never for want of a key, and never an asset that the caller named.

    :param client: Sends the requests.
    :param source: Where the bytes come from.
    :param memory: What one start leaves to the next; ``None`` where there will be no next one.
    :param confirm: Whether Roughy is asked if an upload is complete that it has acknowledged to the last byte; if not,
        the caller asks, for many at a time.
    :param on_progress: Called with the bytes handed over so far and the bytes in all, about once a MiB; by default
        they are told in the log.
    :param on_arrival: Called with the asset's id when all bytes have arrived.
    :param log: Where to say what happens: a logger of the standard library or of structlog.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        *,
        memory: Memory | None = None,
        confirm: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
        on_arrival: Callable[[str], None] = lambda asset_id: None,
        log: Any = _log,
    ) -> None:
        self._client = client
        self._source = source
        self._note = _Note(memory)
        self._confirm = confirm
        self._on_progress = on_progress
        self._on_arrival = on_arrival
        self._log = log
        #: The asset that bytes are being sent to, and what moves them.
        self._asset: RoughyAsset | None = None
        self._uploader: RoughyUploader | None = None
        #: Whether this start made it.
        self._fresh = False
        #: Whether a later start will find it.
        self._noted = False
        #: Whether the caller named it.
        self._named = False
        #: Whether it was given up while it was under way.
        self._abandoned = False

    def run(self, project_id: str, language: str | None = None) -> str:
        """Upload to the asset of an earlier start, or to a new one.

        :param project_id: The project of a new asset.
        :param language: The language spoken, two letters of ISO 639-1; ``None`` lets Roughy detect it.
        :returns: The asset's id.
        :raises RoughyError: Why it did not arrive.
        """
        self._fresh = self._named = False
        wanted = {**self._source.fingerprint, "project_id": project_id, "language": language}
        earlier = self._find_earlier(wanted)
        if earlier is not None:
            try:
                self._noted = True
                return self._go_on(earlier, wanted)
            except (RoughyNotFoundError, RoughyUploadClosedError) as error:
                self._log.info("The upload of asset %s is gone, starting anew: %s", earlier.id, error)
        return self._start(project_id, language, wanted)

    def resume(self, asset_id: str) -> str:
        """Upload to an asset that the caller names, from wherever its upload stands.

        :param asset_id: The asset. If its bytes have arrived, nothing is sent.
        :returns: The asset's id.
        :raises RoughyAssetFailedError: If it has failed at Roughy.
        :raises RoughyError: Why it did not arrive.
        """
        asset = self._read(asset_id)
        Verdict.of(ASSET, asset).raise_for_failure("return")
        self._fresh, self._named = False, True
        return self._go_on(asset, None)

    def abandon(self) -> None:
        """Leave the upload under way to a later start, or discard it if none would find it; for a signal handler."""
        if self._asset is None or self._why_kept(None) is not None:
            return
        self._abandoned = True
        from airflow_provider_roughy.client import Client

        # The one at hand may be in the middle of a request.
        with Client(self._client.settings) as client:
            self._discard(client, self._asset)

    def _find_earlier(self, wanted: dict[str, Any]) -> RoughyAsset | None:
        """Decide what to make of an earlier start: go on with its asset, or (``None``) start anew.

        A retry, a cleared task, a killed worker and a mapped task whose list has shifted all come by here.
        """
        if not self._note.read():
            return None
        asset_id, was_wanted = self._note.asset_id, self._note.wanted
        try:
            asset = self._read(asset_id)
        except RoughyNotFoundError:
            self._log.info("Asset %s of an earlier try is gone: starting anew", asset_id)
            return None
        if was_wanted != wanted:
            names = sorted(wanted.keys() | was_wanted.keys())
            changed = ", ".join(name for name in names if was_wanted.get(name) != wanted.get(name))
            self._log.info("Asset %s of an earlier try was for something else (%s): starting anew", asset_id, changed)
            if Arrival.of(asset) is not Arrival.ARRIVED and not self._note.all_sent:
                self._discard(self._client, asset)
            return None
        if Verdict.of(ASSET, asset).outcome is Outcome.FAILED:
            self._log.info("Asset %s of an earlier try has failed at Roughy: starting anew", asset_id)
            return None
        return asset

    def _start(self, project_id: str, language: str | None, wanted: dict[str, Any]) -> str:
        asset = self._create(project_id, language)
        self._fresh, self._noted = True, False
        with self._answer_for(asset, wanted):
            # Nothing comes between the two: a worker that dies here leaves an asset that nobody knows.
            self._noted = self._note.write(asset.id, wanted)
            self._log.info(
                "Created asset %s in project %s for %s (%s)",
                asset.id,
                project_id,
                self._source.uri,
                bytes_in_words(self._source.size),
            )
            self._send(asset)
        self._on_arrival(asset.id)
        return asset.id

    def _create(self, project_id: str, language: str | None) -> RoughyAsset:
        try:
            return self._client.run(api.create_asset(project_id, self._source.size, language=language))
        except (RoughyProtocolError, RoughyServerError, RoughyUnreachableError) as error:
            if not isinstance(error, RoughyUnreachableError) or error.sent:
                # No listing could tell it from one that a neighbour is about to fill: an asset carries neither a name
                # nor, while it is empty, its size.
                self._log.warning(
                    "Roughy may have made an asset in project %s and the reply was lost; it would stay empty, in "
                    "pending_upload, and cost nothing",
                    project_id,
                )
            raise
        except RoughyNotFoundError:
            self._log.warning("This key's account has no project %s", project_id)
            raise

    def _go_on(self, asset: RoughyAsset, wanted: dict[str, Any] | None) -> str:
        if Arrival.of(asset) is Arrival.ARRIVED:
            self._log.info("Asset %s is %s: its bytes have arrived, nothing to send", asset.id, asset.state)
        else:
            self._log.info("Resuming the upload of %s to asset %s", self._source.uri, asset.id)
            with self._answer_for(asset, wanted):
                self._send(asset)
        self._on_arrival(asset.id)
        return asset.id

    def _read(self, asset_id: str) -> RoughyAsset:
        """Read an asset; one that waits for bytes without an upload is read again, for it may be about to move on."""
        backoff = Backoff(tries=3)
        while True:
            asset = self._client.run(api.get_asset(asset_id))
            if Arrival.of(asset) is not Arrival.CLOSED:
                return asset
            pause = backoff.pause_after(RoughyProtocolError(""))
            if pause is None:
                return asset
            self._log.warning("Asset %s is %s and has no upload; looking again in %.1f s", asset_id, asset.state, pause)
            time.sleep(pause)

    def _send(self, asset: RoughyAsset) -> None:
        told = Progress(self._log, f"Asset {asset.id}", self._note.show_progress) if self._on_progress is None else None
        with self._source.open() as reader:
            self._uploader = open_uploader(
                self._client,
                asset,
                reader,
                self._on_progress or told,
                fresh=self._fresh,
                all_sent=not self._fresh and self._note.all_sent and self._note.asset_id == asset.id,
                confirm=self._confirm,
                log=self._log,
            )
            self._uploader.upload()
        if told is not None:
            told.finish(self._source.size)

    @contextmanager
    def _answer_for(self, asset: RoughyAsset, wanted: dict[str, Any] | None) -> Iterator[None]:
        """See to what becomes of the asset if the body fails."""
        self._asset = asset
        try:
            yield
        except BaseException as error:  # A kill and a timeout are no Exception, and must not leave an orphan either.
            kept = self._why_kept(error)
            if kept is None:
                self._discard(self._client, asset, lost=isinstance(error, RoughyUploadClosedError))
            else:
                self._log.info("Asset %s keeps what has arrived: %s", asset.id, kept)
                if self._may_be_whole(error):
                    self._remember_whole(asset, wanted)
            if self._abandoned and isinstance(error, RoughyError):
                # Airflow 3 only calls on_kill(). That the asset is gone then is no reason against a new try.
                raise RoughyUploadError(
                    f"The upload of {self._source.uri} was discarded, as its task was killed", offset=0
                ) from error
            raise
        finally:
            self._asset = self._uploader = None

    def _remember_whole(self, asset: RoughyAsset, wanted: dict[str, Any] | None) -> None:
        if not self._noted or wanted is None:
            return
        try:
            self._note.write(asset.id, wanted, all_sent=True)
        except Exception as err:  # Airflow's API may be down; what matters is the error that is about to be raised.
            self._log.warning("Could not keep that asset %s may have all its bytes: %s", asset.id, err)

    def _why_kept(self, error: BaseException | None) -> str | None:
        """Say why the asset is not to be discarded, if it is not.

        :param error: What ended the upload; ``None`` for a kill.
        """
        if self._named:
            return "asset_id names it, and a later try may go on from there"
        if self._may_be_whole(error):
            return "Roughy may have all its bytes"
        if isinstance(error, RoughyAuthenticationError):
            return "with a key that works, asset_id resumes it"
        hopeless = isinstance(error, RoughyError) and (error.final or isinstance(error, RoughyUploadClosedError))
        if self._noted and not hopeless:
            return "a later try goes on from there"
        return None

    def _may_be_whole(self, error: BaseException | None) -> bool:
        acknowledged = self._uploader is not None and self._uploader.acknowledged
        return acknowledged or isinstance(error, RoughyUnconfirmedUploadError)

    def _discard(self, client: Client, asset: RoughyAsset, *, lost: bool = False) -> None:
        """Remove an asset that nobody will come back for, unless it has its bytes.

        Roughy is asked first. Then the upload is cancelled, which takes the asset along and cannot hit one that is
        complete. Only an asset that this start made, and whose last byte it never sent, is deleted outright.

        :param lost: Whether its upload is said to be gone; if Roughy says that it is open, a later start decides.
        """
        end_was_sent = self._uploader.end_was_sent if self._uploader is not None else not self._fresh
        removals = [] if asset.upload_url is None else [api.cancel_upload(asset.upload_url)]
        if self._fresh and not end_was_sent:
            removals.append(api.delete_asset(asset.id))
        problem: object = "only an upload that is open could be cancelled"
        for removal in removals:
            try:
                arrival = Arrival.of(client.run(api.get_asset(asset.id)))
                if arrival is Arrival.ARRIVED:
                    self._log.info("Asset %s has all its bytes, and stays", asset.id)
                    return
                if lost and self._fresh and self._noted and arrival is Arrival.OPEN:
                    self._log.info("Asset %s stays: Roughy says that its upload is open", asset.id)
                    return
            except RoughyNotFoundError:
                self._log.info("Asset %s is gone", asset.id)
                return
            except RoughyError as err:
                problem = err
                break
            try:
                client.run(removal)
            except RoughyError as err:
                problem = err
                continue
            self._log.info("Discarded asset %s and its upload", asset.id)
            return
        self._log.warning("Asset %s could not be discarded, and stays: %s", asset.id, problem)


class _Note:
    """What one start leaves to the next; no secret, for Airflow keeps it in plain text.

    :param memory: Where it is kept.
    """

    def __init__(self, memory: Memory | None) -> None:
        self._memory = memory
        self.asset_id = ""
        #: What the asset was made for.
        self.wanted: dict[str, Any] = {}
        #: Whether Roughy may have all its bytes.
        self.all_sent = False

    def read(self) -> bool:
        """Read what an earlier start has left.

        :returns: Whether there is anything.
        """
        match self._memory.get("roughy_upload") if self._memory is not None else None:
            case {"asset_id": str(asset_id), "wanted": dict(wanted), **more}:
                self.asset_id, self.wanted, self.all_sent = asset_id, wanted, more.get("all_sent") is True
                return True
        return False

    def write(self, asset_id: str, wanted: dict[str, Any], *, all_sent: bool = False) -> bool:
        """Keep the asset and what it is made for.

        :returns: Whether there is a memory to keep it in.
        """
        if self._memory is None:
            return False
        self._memory.set(
            "roughy_upload", {"asset_id": asset_id, "wanted": wanted, **({"all_sent": True} if all_sent else {})}
        )
        return True

    def show_progress(self, done: int, total: int) -> None:
        """Show how far the upload is, where Airflow's UI shows its store."""
        if self._memory is not None:
            self._memory.set("roughy_progress", {"bytes": done, "of": total, "percent": 100 * done // total})
