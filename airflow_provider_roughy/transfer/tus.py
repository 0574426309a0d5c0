"""Uploads: tuspy's ``Uploader`` with another transport.

tuspy keeps the state of an upload: URL, offset, size of the next request, the loop until the end. Its transport reads
every chunk into memory, opens a connection for each, has no timeout, and loops for ever on a server that stores
nothing. Here, one ``PATCH`` sends all that is left, streamed from one open source through this package's client.

Replies get lost, replicas lag, and gateways reply in Roughy's place. So the state of an upload is defined as follows:

- **Complete**: ``GET /v1/assets/{id}`` shows a state other than ``pending_upload``. The asset is read before any upload
  ends with an error, whatever ``HEAD`` returns.
- **Dead**: Three replies in a row are that there is no such asset, or that it waits for bytes and has no upload. A
  refused ``HEAD`` is only a reason to read the asset: its reply has no body that shows who sent it.
- **Unconfirmed**: Roughy may have all bytes. It acknowledged them, or the last one was sent, its reply is missing, and
  the upload is gone. The asset is read again, and the upload is dead only if the asset is gone, too.
- **Missed**: ``HEAD`` returns the full offset, but the asset still waits for bytes. An empty ``PATCH`` at the full
  offset ends the upload once more.
- **Open**: everything else. The next request starts at the offset that ``HEAD`` returns. A request that fails counts as
  an attempt and is followed by a pause. The count starts again at an offset higher than all before.

Importing this module loads requests and aiohttp, on which tuspy depends. Import it only before a transfer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tusclient.client import TusClient
from tusclient.uploader.uploader import Uploader

from airflow_provider_roughy import api
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyError,
    RoughyNotFoundError,
    RoughyProtocolError,
    RoughySourceError,
    RoughyUnconfirmedUploadError,
    RoughyUnreachableError,
    RoughyUnsupportedMediaError,
    RoughyUnusableSourceError,
    RoughyUploadClosedError,
    RoughyUploadError,
)
from airflow_provider_roughy.http import interrupt
from airflow_provider_roughy.http.retry import Backoff, TransferTries
from airflow_provider_roughy.instruments import BYTES_UPLOADED, Tally
from airflow_provider_roughy.lifecycle import Arrival
from airflow_provider_roughy.logs import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_roughy.http.client import Client
    from airflow_provider_roughy.transfer.source import Reader

#: The smallest request after a broken connection, in bytes.
_MIN_BYTES_AFTER_BREAK = 1024 * 1024
#: The smallest request after a 413 (content too large), in bytes.
_MIN_BYTES_AFTER_413 = 64 * 1024
#: After so many successful requests in a row, the next one may be twice as large.
_GROW_AFTER = 4
#: Replies in a row by which an upload counts as dead, or an acknowledged byte as not stored.
_CONFIRMATIONS = 3

_log = logging.getLogger(__name__)


class RoughyUploader(Uploader):
    """Uploads one source to one asset, by the rules of this module.

    :param client: Sends the requests.
    :param upload_url: The URL of the upload.
    :param reader: The open source.
    :param look: Reads the asset once, and returns the state of its upload; raises
        :class:`~airflow_provider_roughy.exceptions.RoughyNotFoundError` if there is no such asset.
    :param fresh: Whether the upload was just created, so that its offset is 0.
    :param all_sent: Whether Roughy may have all bytes from an earlier transfer to this upload.
    :param acknowledged: Bytes that Roughy acknowledged in earlier transfers to this upload.
    :param confirm: Whether to read the asset when Roughy has acknowledged the last byte. If not, the caller has to.
    :param on_all_acknowledged: Called when Roughy has acknowledged all bytes, before the asset is read.
    :param backoff: The retry policy, whose count of attempts starts again when bytes arrive.
    :param on_progress: Called with the bytes sent so far and the total, after each block.
    :param log: The logger.
    :param asset_id: The asset, for messages.
    """

    def __init__(
        self,
        client: Client,
        upload_url: str,
        reader: Reader,
        *,
        look: Callable[[], Arrival],
        fresh: bool = False,
        all_sent: bool = False,
        acknowledged: int = 0,
        confirm: bool = True,
        backoff: Backoff | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_all_acknowledged: Callable[[], None] = lambda: None,
        log: Log = _log,
        asset_id: str = "",
    ) -> None:
        self._wire = client
        self._read_asset_once = look
        self._confirm = confirm
        self._reader = reader
        self._log = log
        self._what = f"Upload of {reader.source.uri}" + (f" to asset {asset_id}" if asset_id else "")
        self._tries = TransferTries(self._what, backoff, log)
        self._on_all_acknowledged = on_all_acknowledged
        self._on_progress = on_progress or (lambda done, total: None)
        #: Whether ``offset`` is the server's offset.
        self._offset_known = fresh
        #: The highest offset that the server ever acknowledged. The count of attempts starts again beyond it only.
        self.reached = acknowledged
        #: Whether the last byte was sent, by a request that was not refused.
        self.end_was_sent = all_sent
        #: Whether the server has not reported an offset since the last byte was sent.
        self._end_in_doubt = all_sent
        #: Whether the server has acknowledged all bytes.
        self.acknowledged = all_sent
        #: Replies in a row by which the upload is dead, or an acknowledged byte is missing.
        self._dead_replies = self._short_replies = 0
        #: The conflict that the first bytes were refused with. It may mean that they are neither audio nor video.
        self._conflict: RoughyApiError | None = None
        #: The offset of the request in which the connection broke, and how many bytes of it had been sent.
        self._broke_at: int | None = None
        self._bytes_sent = 0
        self._tally = Tally(BYTES_UPLOADED)
        self._succeeded = 0
        self._may_grow = True
        # With a URL, tuspy's constructor would send a HEAD of its own.
        super().__init__(file_path=reader.source.uri, client=TusClient(upload_url))
        self._upload_url = upload_url
        self.set_url(upload_url)

    def get_file_size(self) -> int:
        """Return the size of the source in bytes."""
        return self._reader.source.size

    def get_offset(self) -> int:
        """Request the number of bytes that the server has (TUS ``HEAD``).

        :raises RoughyUnusableSourceError: If the upload was opened for a source of another size.
        :raises RoughyProtocolError: If the offset is beyond the source.
        :raises RoughyError: If the request fails.
        """
        call = api.read_offset(self._upload_url, headers=self.get_headers())
        offset, length = self._wire.once(call)
        size = self.get_file_size()
        if length is not None and length != size:
            if self._end_in_doubt:
                # Roughy has received the last byte of this source, so this reply is about another upload.
                raise RoughyProtocolError(f"{call.request}: the server claims a length of {length}, not {size} bytes")
            raise RoughyUnusableSourceError(
                f"Source {self._reader.source.uri} has {size} bytes, but its upload was created for {length}: "
                "restore the file that the upload began with, or upload this one to a new asset"
            )
        if offset > size:
            raise RoughyProtocolError(f"{call.request}: the server claims {offset} of {size} bytes")
        return offset

    def upload(self, stop_at: int | None = None) -> None:
        """Send what is left, and return when all bytes have arrived.

        Before an error is raised, the asset is read: if it has left ``pending_upload``, the upload is complete.

        :param stop_at: Of tuspy; the default is the end of the source.
        :raises RoughySourceError: If the source has changed, whatever the state of the asset.
        :raises RoughyError: If the upload failed.
        """
        try:
            super().upload(stop_at)
        except (RoughySourceError, RoughyNotFoundError, RoughyUploadClosedError):
            # For the last two, the asset was just read.
            raise
        except RoughyError as error:
            arrival = self._read_arrival()
            if arrival is Arrival.ARRIVED:
                uri = self._reader.source.uri
                self._log.info("Uploaded all bytes of %s, as its asset shows, despite an error: %s", uri, error)
                self.offset = self.stop_at
            elif arrival is None and self._end_in_doubt and type(error) is RoughyUploadError:
                cause = error.__cause__ if isinstance(error.__cause__, RoughyError) else error
                raise self._given_up(cause, unconfirmed=True) from cause
            else:
                raise
        finally:
            self._tally.end()

    def _read_arrival(self) -> Arrival | None:
        """Read the asset, and repeat that after errors if Roughy may have all bytes; ``None`` if it cannot be read."""
        backoff = Backoff(tries=4 if self.end_was_sent else 1, patience=30.0)
        while True:
            try:
                return self._read_asset_once()
            except RoughyError as error:
                pause = backoff.pause_after(error)
                if pause is None:
                    return None
            interrupt.pause(pause)

    def upload_chunk(self) -> None:
        """Send what is left, or request the offset to continue at. ``upload()`` repeats this until all is done."""
        if self._offset_known:
            self._send()
        else:
            self._synchronize()

    def _send(self) -> None:
        """Send one request, and continue at the server's new offset."""
        start, length = self.offset, self.get_request_length()
        call = api.send_bytes(
            self._upload_url, self._blocks(length), offset=start, length=length, headers=self.get_headers()
        )
        before = self.end_was_sent, self._end_in_doubt
        self._offset_known = False
        try:
            offset = self._wire.once(call)
            if not start < offset <= start + length:
                raise RoughyProtocolError(
                    f"{call.request}: {length} bytes were sent at {start}, and the server claims to be at {offset}"
                )
        except RoughyApiError as error:
            if error.status == 413 or not error.transient:
                # The server has stored nothing of a request that it refused.
                self.end_was_sent, self._end_in_doubt = before
            self._after_refusal(error, start, length)
            return
        except RoughyError as error:
            self._broke_at = start if isinstance(error, RoughyUnreachableError) and error.sent else None
            self._try_again(error)
            return
        self._conflict = None
        if offset == self.stop_at:
            self._after_last(f"{call.request}: all {offset} bytes are acknowledged")
            return
        self.end_was_sent = self._end_in_doubt = False
        self._continue_at(offset)
        self._succeeded += 1
        if self._may_grow and self._succeeded % _GROW_AFTER == 0:
            self.chunk_size *= 2

    def _blocks(self, length: int) -> Iterator[bytes]:
        self._bytes_sent = 0
        for block in self._reader.blocks(self.offset, length):
            if self.offset + self._bytes_sent + len(block) == self.stop_at:
                self.end_was_sent = self._end_in_doubt = True
            yield block
            self._bytes_sent += len(block)
            self._tally.add(len(block))
            self._on_progress(self.offset + self._bytes_sent, self.stop_at)

    def _after_refusal(self, error: RoughyApiError, start: int, length: int) -> None:
        if error.status == 413 and length > _MIN_BYTES_AFTER_413:
            # Roughy does not limit the size of a request, but a proxy may.
            self.chunk_size = max(length // 4, _MIN_BYTES_AFTER_413)
            self._may_grow = False
        elif error.status == 409:
            # The offset is wrong, another client is writing, or the first bytes are not media. No documented code
            # distinguishes these, so HEAD decides.
            self._conflict = error if start == 0 else None
            self._try_again(RoughyProtocolError(str(error)), rejected=start == 0 and self._tries.failed == 0)
        elif isinstance(error, RoughyNotFoundError):
            self._check_asset(error)
        else:
            self._try_again(error)

    def _synchronize(self) -> None:
        """Request the server's offset, and continue there.

        If nothing has arrived of a request in which the connection broke, the server discards broken requests. The next
        one is then smaller, so that it is complete before the connection breaks.
        """
        try:
            offset = self.get_offset()
        except RoughyError as error:
            refused = isinstance(error, RoughyApiError) and not error.transient
            if refused or (self._end_in_doubt and error.transient):
                self._check_asset(error)
            else:
                self._try_again(error)
            return
        self._dead_replies = 0
        if self._broke_at is not None and offset <= self._broke_at:
            self.chunk_size = min(self.chunk_size, max(self._bytes_sent // 2, _MIN_BYTES_AFTER_BREAK))
            self._succeeded = 0
        self._broke_at = None
        if offset == self.stop_at:
            self._after_last(f"all {offset} bytes have been received", by_head=True)
            return
        self._end_in_doubt = False
        if self.acknowledged:
            self._short_replies += 1
            if self._short_replies < _CONFIRMATIONS:
                what = f"all {self.stop_at} bytes were acknowledged, and only {offset} are there"
                self._check_asset(RoughyProtocolError(what))
                return
        self._continue_at(offset)

    def _continue_at(self, offset: int) -> None:
        self.offset = offset
        self._offset_known = True
        if offset > self.reached:
            self.reached = offset
            self._tries.refill()

    def _after_last(self, claim: str, *, by_head: bool = False) -> None:
        """Check by the asset that all bytes have arrived.

        :param claim: What acknowledged them, for messages.
        :param by_head: Whether that was a ``HEAD``, so that the upload is still open.
        """
        self._short_replies = 0
        self.reached = self.stop_at
        self._end_in_doubt = False
        if not self.acknowledged:
            self.acknowledged = self.end_was_sent = True
            self._tries.refill()
            self._on_all_acknowledged()
        if not self._confirm and not by_head:
            self.offset = self.stop_at
            return
        reason = RoughyProtocolError(f"{claim}, and the asset still waits for bytes")
        self._check_asset(reason, end_again=by_head)

    def _end_upload_again(self) -> None:
        """Send an empty request at the full offset, as the server has all bytes and has not ended the upload."""
        call = api.send_bytes(self._upload_url, (), offset=self.stop_at, length=0, headers=self.get_headers())
        try:
            self._wire.once(call)
        except RoughyError as error:
            # A server that has ended the upload may refuse it in any way. The asset shows the result.
            self._log.debug("The empty request at the end failed: %s", error)

    def _check_asset(self, reason: RoughyError, *, end_again: bool = False) -> None:
        """Read the asset to find out the state of the upload.

        :param reason: The reply that has to be confirmed by the asset.
        :param end_again: Whether to send an empty request if the asset still waits for bytes.
        """
        try:
            arrival = self._read_asset_once()
            if end_again and arrival is not Arrival.ARRIVED:
                self._end_upload_again()
                arrival = self._read_asset_once()
        except RoughyNotFoundError as gone:
            self._presume_dead(gone, gone, removed=True)
            return
        except RoughyError as error:
            self._try_again(error)
            return
        if arrival is Arrival.ARRIVED:
            self.offset = self.stop_at
            return
        closed = RoughyUploadClosedError(
            f"{self._what} cannot be resumed: the asset waits for bytes, but its upload does not exist any more "
            f"({reason}). Upload to a new asset; RoughyCreateUploadOperator and RoughyIngestOperator do so on a retry",
            offset=self.reached,
        )
        if arrival is Arrival.CLOSED or (self._conflict is not None and isinstance(reason, RoughyNotFoundError)):
            self._presume_dead(reason, closed)
        elif isinstance(reason, RoughyNotFoundError):
            self._try_again(reason, end=closed)
        else:
            # HEAD failed or was refused for another reason, but the asset shows that the upload is open.
            self._try_again(reason if reason.transient else RoughyProtocolError(str(reason)))

    def _presume_dead(self, reason: RoughyError, verdict: RoughyError, *, removed: bool = False) -> None:
        """End the upload if several replies in a row say the same; later if Roughy may have all bytes.

        :param reason: The reply.
        :param verdict: The error that ends the upload.
        :param removed: Whether Roughy has replied that there is no such asset, so that nothing can be lost.
        """
        self._dead_replies += 1
        if self._conflict is not None:
            # An upload ends like this if its first bytes are not media (Roughy's guide "Upload an asset").
            hint = f"{self._reader.source.uri} is neither audio nor video that Roughy can read"
            verdict = RoughyUnsupportedMediaError(**self._conflict.to_dict(), hint=hint)
        if self._dead_replies >= _CONFIRMATIONS and not self.end_was_sent:
            raise verdict from reason
        self._try_again(reason, end=verdict, certain=removed, rejected=self._conflict is not None)

    def _try_again(
        self, error: RoughyError, *, end: RoughyError | None = None, certain: bool = False, rejected: bool = False
    ) -> None:
        """Pause before the next request, or end the transfer.

        :param error: The error of the last request. If it is not transient and there is no ``end``, it is raised.
        :param end: The error that ends the transfer when no attempts are left.
        :param certain: Whether ``end`` applies although Roughy may have all bytes.
        :param rejected: Whether Roughy has probably rejected the file.
        """
        if not error.transient:
            if end is None:
                raise error
            error = RoughyProtocolError(str(error))
        pause = self._tries.pause_after(error, rejected=rejected)
        if pause is None:
            if end is not None and (certain or not self.end_was_sent):
                raise end from error
            raise self._given_up(error, unconfirmed=self.acknowledged or end is not None) from error
        interrupt.pause(pause)

    def _given_up(self, error: RoughyError, *, unconfirmed: bool) -> RoughyUploadError:
        what, tried = self._what, f"{self._tries.failed} attempts without progress: {error}"
        if unconfirmed:
            return RoughyUnconfirmedUploadError(
                f"{what}: Roughy may have all {self.stop_at} bytes, and did not confirm it in {tried}. A retry asks "
                "again",
                offset=self.stop_at if self.acknowledged else self.offset,
            )
        return RoughyUploadError(
            f"{what} gave up at {self.offset} of {self.stop_at} bytes, after {tried}. A retry resumes it, or "
            "uploads to a new asset if it cannot",
            offset=self.offset,
        )
