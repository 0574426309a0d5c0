"""The transfer: tuspy's ``Uploader`` with what moves the bytes replaced.

tuspy keeps the books (URL, offset, size of the next request, the loop until the end). Its transport reads every chunk
into memory, opens a connection for each, has no timeout and loops for ever on a server that stores nothing; so here one
``PATCH`` carries all that is left, streamed from one open source through the package's own client.

Importing this module loads requests and aiohttp, on which tuspy depends: import it only where bytes are about to move.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tusclient.client import TusClient
from tusclient.uploader.uploader import Uploader

from airflow_provider_roughy import api
from airflow_provider_roughy.client import Backoff
from airflow_provider_roughy.exceptions import (
    RoughyConflictError,
    RoughyError,
    RoughyNotFoundError,
    RoughyProtocolError,
    RoughySourceError,
    RoughyUnreachableError,
    RoughyUnsupportedMediaError,
    RoughyUnusableSourceError,
    RoughyUploadError,
    RoughyValidationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_roughy.client import Client
    from airflow_provider_roughy.source import Reader

#: Bytes. A request does not shrink below this because of a broken connection.
_SMALLEST_AFTER_BREAK = 1024 * 1024
#: Bytes. A request does not shrink below this because something on the way finds it too large.
_SMALLEST_AFTER_413 = 64 * 1024
#: After so many requests in a row went well, the next may be twice as large.
_GROW_AFTER = 4


class RoughyUploader(Uploader):
    """Moves one source into one asset's upload, whatever happens on the way.

    After anything that leaves the server's offset in doubt it asks for it (``HEAD``) and goes on from there; an offset
    is never assumed, and a server that makes no progress ends the transfer after ``backoff.tries`` attempts.

    :param client: Sends the requests.
    :param upload_url: Where the bytes go.
    :param reader: The open source.
    :param is_complete: Asks Roughy whether all bytes have arrived: at the end, which is not taken on faith, and when
        the upload is gone, which is what becomes of a complete one whose last reply was lost.
    :param fresh: Whether the upload was only just opened, so that its offset is known to be 0.
    :param backoff: The retry policy; its tries are counted anew whenever bytes arrived.
    :param on_progress: Called with the bytes handed over so far and the bytes in all, after each block.
    """

    def __init__(
        self,
        client: Client,
        upload_url: str,
        reader: Reader,
        *,
        is_complete: Callable[[], bool],
        fresh: bool = False,
        backoff: Backoff | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._wire = client
        self._is_complete = is_complete
        self._reader = reader
        self._backoff = backoff or Backoff(tries=8, longest=60.0)
        self._on_progress = on_progress or (lambda done, total: None)
        self._in_step = fresh
        #: The highest offset that the server ever acknowledged; only beyond it are the tries counted anew.
        self._reached = 0
        #: Bytes of the running request that were handed to the connection.
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
        offset, length = api.decipher(call, self._wire.send(call.request))
        size = self.get_file_size()
        if length is not None and length != size:
            raise RoughyUnusableSourceError(
                f"Source {self._reader.source.uri} has {size} bytes, but its upload was opened for {length}"
            )
        if offset > size:
            raise RoughyProtocolError(f"{call.request}: the server claims {offset} of {size} bytes")
        return offset

    def upload_chunk(self) -> None:
        """Send one request, or find out why it cannot be sent; :meth:`upload` calls this until all is done."""
        if not self._in_step:
            self._synchronize()
            return
        start, length = self.offset, self.get_request_length()
        call = api.send_bytes(
            self._upload_url, self._blocks(length), offset=start, length=length, headers=self.get_headers()
        )
        try:
            offset = api.decipher(call, self._wire.send(call.request))
            if not start < offset <= start + length:
                raise RoughyProtocolError(
                    f"{call.request}: {length} bytes were sent at {start}, and the server claims to be at {offset}"
                )
        except RoughyConflictError as error:
            self._after_conflict(error)
        except RoughyNotFoundError as error:
            self._after_gone(error)
        except RoughyValidationError as error:
            # Roughy has no limit on one request, but a proxy before it may.
            if error.status != 413 or length <= _SMALLEST_AFTER_413:
                raise
            self.chunk_size = max(length // 4, _SMALLEST_AFTER_413)
            self._may_grow = False
            self._in_step = False
        except RoughyError as error:
            self._pause_after(error)
            self._synchronize(broken=isinstance(error, RoughyUnreachableError) and error.sent)
        else:
            if offset == self.stop_at and not self._is_complete():
                self._after_claim(call.request)
                return
            self._advance(offset)
            self._went_well += 1
            if self._may_grow and self._went_well % _GROW_AFTER == 0:
                self.chunk_size *= 2

    def _blocks(self, length: int) -> Iterator[bytes]:
        self._handed_over = 0
        for block in self._reader.blocks(self.offset, length):
            yield block
            self._handed_over += len(block)
            self._on_progress(self.offset + self._handed_over, self.stop_at)

    def _advance(self, offset: int) -> None:
        self.offset = offset
        if offset > self._reached:
            self._reached = offset
            self._backoff.refill()

    def _synchronize(self, *, broken: bool = False) -> None:
        """Take the server's offset, asking until it is told.

        :param broken: Whether the last request broke on the way. If nothing of it has arrived, the server keeps nothing
            of a broken request, and the next one is made small enough to get through.
        """
        start = self.offset
        while True:
            try:
                offset = self.get_offset()
            except RoughyNotFoundError as error:
                self._after_gone(error)
                return
            except RoughyError as error:
                self._pause_after(error)
            else:
                break
        if broken and offset <= start:
            self.chunk_size = min(self.chunk_size, max(self._handed_over // 2, _SMALLEST_AFTER_BREAK))
            self._went_well = 0
        self._advance(offset)
        self._in_step = True

    def _after_conflict(self, error: RoughyConflictError) -> None:
        """Tell an offset that does not match from media that Roughy does not take (guide "Upload an asset")."""
        start = self.offset
        self._in_step = False
        try:
            self._synchronize()
        except RoughyNotFoundError:
            if start == 0:
                raise self._unsupported(error) from error
            raise
        if self.offset == start:
            if start == 0:
                raise self._unsupported(error) from error
            self._pause_after(RoughyProtocolError(f"{error}; yet the offset of {start} bytes is right"))

    def _unsupported(self, error: RoughyConflictError) -> RoughyUnsupportedMediaError:
        return RoughyUnsupportedMediaError(**error.to_dict())

    def _after_gone(self, error: RoughyNotFoundError) -> None:
        """Find out whether the upload is gone because it is complete and only the reply was lost."""
        if not self._is_complete():
            raise error
        self._advance(self.stop_at)

    def _after_claim(self, request: api.Request) -> None:
        """Find out what a server has that claimed to have all, while Roughy still waits for bytes."""
        self._synchronize()
        if self.offset < self.stop_at:
            self._pause_after(
                RoughyProtocolError(f"{request}: the server claimed all {self.stop_at} bytes, and has {self.offset}")
            )

    def _pause_after(self, error: RoughyError) -> None:
        if not error.transient or isinstance(error, RoughySourceError):
            raise error
        pause = self._backoff.pause_after(error)
        if pause is None:
            raise RoughyUploadError(
                f"Upload of {self._reader.source.uri} gave up at {self.offset} of {self.stop_at} bytes, "
                f"after {self._backoff.tries} attempts without progress: {error}",
                offset=self.offset,
            ) from error
        self._in_step = False
        time.sleep(pause)
