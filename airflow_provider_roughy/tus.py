"""The transfer: tuspy's ``Uploader`` with what moves the bytes replaced.

tuspy keeps the books (URL, offset, size of the next request, the loop until the end). Its transport reads every chunk
into memory, opens a connection for each, has no timeout and loops for ever on a server that stores nothing; so here one
``PATCH`` carries all that is left, streamed from one open source through the package's own client.

Replies get lost, replicas lag, and gateways answer in Roughy's place. So one rule says what has become of an upload:

- **Complete** is what Roughy says is complete: ``GET /v1/assets/{id}`` shows a state other than ``pending_upload``.
- **Dead** is what Roughy says is dead, three times in a row: there is no such asset, or it waits for bytes and has no
  upload. What ``HEAD`` is refused with is a reason to ask; its reply has no body to tell who answered.
- **Unconfirmed** is what Roughy may have wholly: all bytes were acknowledged, or the last one was sent, the reply is
  missing, and the upload is gone. Roughy is asked again, and only an asset that is gone as well counts as dead.
- Everything else is **open**: the next request starts at the offset that ``HEAD`` tells. Each that fails is counted and
  followed by a pause; only an offset beyond all before counts anew.

Importing this module loads requests and aiohttp, on which tuspy depends: import it only where bytes are about to move.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from tusclient.client import TusClient
from tusclient.uploader.uploader import Uploader

from airflow_provider_roughy import api
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyError,
    RoughyNotFoundError,
    RoughyProtocolError,
    RoughyUnconfirmedUploadError,
    RoughyUnreachableError,
    RoughyUnsupportedMediaError,
    RoughyUnusableSourceError,
    RoughyUploadClosedError,
    RoughyUploadError,
)
from airflow_provider_roughy.lifecycle import Arrival
from airflow_provider_roughy.retry import TransferTries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_roughy.client import Client
    from airflow_provider_roughy.retry import Backoff
    from airflow_provider_roughy.source import Reader

#: Bytes. A request does not shrink below this because of a broken connection.
_SMALLEST_AFTER_BREAK = 1024 * 1024
#: Bytes. A request does not shrink below this because something on the way finds it too large.
_SMALLEST_AFTER_413 = 64 * 1024
#: After so many requests in a row went well, the next may be twice as large.
_GROW_AFTER = 4
#: Looks in a row that must tell the same before an upload counts as dead, or an acknowledged byte as not stored.
_LOOKS = 3

_log = logging.getLogger(__name__)


class RoughyUploader(Uploader):
    """Moves one source into one asset's upload, whatever happens on the way; the module says by which rule.

    :param client: Sends the requests.
    :param upload_url: Where the bytes go.
    :param reader: The open source.
    :param look: Asks Roughy once what the asset says of its upload; raises
        :class:`~airflow_provider_roughy.exceptions.RoughyNotFoundError` if there is no such asset.
    :param fresh: Whether the upload was only just opened, so that its offset is known to be 0.
    :param all_sent: Whether an earlier transfer to this upload ended unconfirmed.
    :param confirm: Whether Roughy is asked if an acknowledged upload is complete; if not, the caller has to ask.
    :param backoff: The retry policy; its tries are counted anew whenever bytes arrived.
    :param on_progress: Called with the bytes handed over so far and the bytes in all, after each block.
    :param log: Where each pause is told.
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
        confirm: bool = True,
        backoff: Backoff | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        log: Any = _log,
    ) -> None:
        self._wire = client
        self._look = look
        self._confirm = confirm
        self._reader = reader
        self._tries = TransferTries(f"Upload of {reader.source.uri}", backoff, log)
        self._on_progress = on_progress or (lambda done, total: None)
        #: Whether ``offset`` is where the server stands.
        self._offset_known = fresh
        #: The highest offset that the server ever acknowledged; only beyond it are the tries counted anew.
        self._reached = 0
        #: Whether the last byte was sent, by a request that was not refused.
        self.end_was_sent = all_sent
        #: Whether the server has acknowledged all bytes.
        self.acknowledged = all_sent
        #: Looks in a row by which the upload is dead, or an acknowledged byte is missing.
        self._dead_looks = self._short_looks = 0
        #: What the first bytes were refused with, which may mean that they are neither audio nor video.
        self._conflict: RoughyApiError | None = None
        #: Where the connection broke in mid-request, and how much of that request was handed over to it.
        self._broke_at: int | None = None
        self._handed_over = 0
        self._went_well = 0
        self._may_grow = True
        # With a URL, tuspy's constructor would send a HEAD of its own.
        super().__init__(file_path=reader.source.uri, client=TusClient(upload_url))
        self._upload_url = upload_url
        self.set_url(upload_url)

    def get_file_size(self) -> int:
        """Return the size of the source in bytes."""
        return self._reader.source.size

    def get_offset(self) -> int:
        """Ask the server how many bytes it has (TUS, "HEAD").

        :raises RoughyUnusableSourceError: If the upload was opened for a source of another size.
        :raises RoughyProtocolError: If the offset is beyond the source.
        :raises RoughyError: Whatever else the server answered.
        """
        call = api.read_offset(self._upload_url, headers=self.get_headers())
        offset, length = self._wire.once(call)
        size = self.get_file_size()
        if length is not None and length != size:
            raise RoughyUnusableSourceError(
                f"Source {self._reader.source.uri} has {size} bytes, but its upload was opened for {length}"
            )
        if offset > size:
            raise RoughyProtocolError(f"{call.request}: the server claims {offset} of {size} bytes")
        return offset

    def upload_chunk(self) -> None:
        """Take one step: send what is left, or ask where to go on; ``upload()`` calls this until all is done."""
        if self._offset_known:
            self._send()
        else:
            self._synchronize()

    def _send(self) -> None:
        """Send one request, and take the server's new offset."""
        start, length = self.offset, self.get_request_length()
        call = api.send_bytes(
            self._upload_url, self._blocks(length), offset=start, length=length, headers=self.get_headers()
        )
        before = self.end_was_sent
        self._offset_known = False
        try:
            offset = self._wire.once(call)
            if not start < offset <= start + length:
                raise RoughyProtocolError(
                    f"{call.request}: {length} bytes were sent at {start}, and the server claims to be at {offset}"
                )
        except RoughyApiError as error:
            if error.status == 413 or not error.transient:
                # It was refused, so it left nothing behind.
                self.end_was_sent = before
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
        self.end_was_sent = False
        self._take(offset)
        self._went_well += 1
        if self._may_grow and self._went_well % _GROW_AFTER == 0:
            self.chunk_size *= 2

    def _blocks(self, length: int) -> Iterator[bytes]:
        self._handed_over = 0
        for block in self._reader.blocks(self.offset, length):
            if self.offset + self._handed_over + len(block) == self.stop_at:
                self.end_was_sent = True
            yield block
            self._handed_over += len(block)
            self._on_progress(self.offset + self._handed_over, self.stop_at)

    def _after_refusal(self, error: RoughyApiError, start: int, length: int) -> None:
        if error.status == 413 and length > _SMALLEST_AFTER_413:
            # Roughy has no limit on one request, but a proxy before it may.
            self.chunk_size = max(length // 4, _SMALLEST_AFTER_413)
            self._may_grow = False
        elif error.status == 409:
            # Either the offset is wrong, or somebody else is writing, or the first bytes are no media: HEAD tells, as
            # no page says by which code they are told apart.
            self._conflict = error if start == 0 else None
            self._try_again(RoughyProtocolError(str(error)))
        elif isinstance(error, RoughyNotFoundError):
            self._ask_roughy(error)
        else:
            self._try_again(error)

    def _synchronize(self) -> None:
        """Take the server's offset.

        If nothing arrived of a request that broke on the way, the server keeps nothing of a broken request, and the
        next one is made small enough to get through.
        """
        try:
            offset = self.get_offset()
        except RoughyApiError as error:
            if error.transient:
                self._try_again(error)
            else:
                self._ask_roughy(error)
            return
        except RoughyError as error:
            self._try_again(error)
            return
        self._dead_looks = 0
        if self._broke_at is not None and offset <= self._broke_at:
            self.chunk_size = min(self.chunk_size, max(self._handed_over // 2, _SMALLEST_AFTER_BREAK))
            self._went_well = 0
        self._broke_at = None
        if offset == self.stop_at:
            self._after_last(f"all {offset} bytes have been received")
            return
        if self.acknowledged:
            self._short_looks += 1
            if self._short_looks < _LOOKS:
                what = f"all {self.stop_at} bytes were acknowledged, and only {offset} are there"
                self._ask_roughy(RoughyProtocolError(what))
                return
        self._take(offset)

    def _take(self, offset: int) -> None:
        self.offset = offset
        self._offset_known = True
        if offset > self._reached:
            self._reached = offset
            self._tries.refill()

    def _after_last(self, claim: str) -> None:
        """Have Roughy confirm that all bytes have arrived."""
        self._short_looks = 0
        if not self.acknowledged:
            self.acknowledged = self.end_was_sent = True
            self._tries.refill()
        if not self._confirm:
            self.offset = self.stop_at
            return
        self._ask_roughy(RoughyProtocolError(f"{claim}, and the asset still waits for bytes"))

    def _ask_roughy(self, reason: RoughyError) -> None:
        """Let Roughy itself say what became of the upload.

        :param reason: What makes us ask: a word that is not to be believed without it.
        """
        try:
            arrival = self._look()
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
            f"The asset for {self._reader.source.uri} waits for bytes, but its upload is gone: {reason}",
            offset=self._reached,
        )
        if arrival is Arrival.CLOSED or (self._conflict is not None and isinstance(reason, RoughyNotFoundError)):
            self._presume_dead(reason, closed)
        elif isinstance(reason, RoughyNotFoundError):
            self._try_again(reason, end=closed)
        else:
            # A HEAD that was refused for any other reason, while Roughy says that the upload is open.
            self._try_again(RoughyProtocolError(str(reason)))

    def _presume_dead(self, reason: RoughyError, verdict: RoughyError, *, removed: bool = False) -> None:
        """Give the upload up if each look tells the same, and later if Roughy may have all bytes.

        :param removed: Whether Roughy says that there is no such asset, so that there is nothing to lose.
        """
        self._dead_looks += 1
        if self._conflict is not None:
            # What becomes of an upload whose first bytes are no media (guide "Upload an asset").
            verdict = RoughyUnsupportedMediaError(**self._conflict.to_dict())
        if self._dead_looks >= _LOOKS and not self.end_was_sent:
            raise verdict from reason
        self._try_again(reason, end=verdict, certain=removed)

    def _try_again(self, error: RoughyError, *, end: RoughyError | None = None, certain: bool = False) -> None:
        """Pause before the next request, or end the transfer.

        :param error: Why. One that is not transient ends the transfer, unless ``end`` is there to do that later.
        :param end: What ends the transfer if the tries are used up: a verdict on the upload.
        :param certain: Whether that holds although Roughy may have all bytes.
        """
        if not error.transient:
            if end is None:
                raise error
            error = RoughyProtocolError(str(error))
        pause = self._tries.pause_after(error)
        if pause is None:
            if end is not None and (certain or not self.end_was_sent):
                raise end from error
            raise self._given_up(error, unconfirmed=self.acknowledged or end is not None) from error
        time.sleep(pause)

    def _given_up(self, error: RoughyError, *, unconfirmed: bool) -> RoughyUploadError:
        what, tried = f"Upload of {self._reader.source.uri}", f"{self._tries.failed} attempts without progress: {error}"
        if unconfirmed:
            return RoughyUnconfirmedUploadError(
                f"{what}: Roughy may have all {self.stop_at} bytes, and did not confirm it in {tried}",
                offset=self.stop_at if self.acknowledged else self.offset,
            )
        return RoughyUploadError(
            f"{what} gave up at {self.offset} of {self.stop_at} bytes, after {tried}", offset=self.offset
        )
