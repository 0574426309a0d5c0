"""Downloads: a file of Roughy's, by its signed link, into a target.

Links expire, connections break, and proxies reply in place of the storage. The rules of a download are:

- The file has the length that Roughy reports. A reply is refused if it announces another length, is compressed, or is
  an HTML page.
- A download that broke is resumed by ``Range`` if the storage has named a version of the file (a strong ``ETag``), and
  sends exactly the requested part (``If-Range``) of the same version. Otherwise it starts from the beginning.
- A link that the storage refuses, or that leads to a file of another length, is replaced by a new one from Roughy.
- A failed request counts as an attempt and is followed by a pause. The count starts again when more bytes arrive than
  ever before. A link that worked and is refused later has expired, which is not a failure.

The API key is never sent to a storage, and no message quotes a link.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import Request, is_page
from airflow_provider_roughy.exceptions import (
    RoughyDownloadError,
    RoughyError,
    RoughyGatewayError,
    RoughyInterruptedError,
    RoughyNotReadyError,
    RoughyProtocolError,
)
from airflow_provider_roughy.http import interrupt
from airflow_provider_roughy.http.retry import TransferTries
from airflow_provider_roughy.instruments import BYTES_DOWNLOADED, DOWNLOAD_DURATION, Tally
from airflow_provider_roughy.lifecycle import Outcome, Verdict
from airflow_provider_roughy.logs import Log
from airflow_provider_roughy.transfer.target import find_target

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from airflow_provider_roughy.compat import ObjectStoragePath
    from airflow_provider_roughy.http.client import Client, Download
    from airflow_provider_roughy.http.retry import Backoff
    from airflow_provider_roughy.lifecycle import Kind
    from airflow_provider_roughy.transfer.target import Overwrite, Sink

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Downloaded:
    """The result of a download.

    :param uri: The target, without credentials.
    :param written: Whether the file was written; if not, it existed already.
    :param size_bytes: Bytes of the file.
    """

    uri: str
    written: bool
    size_bytes: int | None = None


def download(
    client: Client,
    kind: Kind,
    id: str,
    target: str | os.PathLike[str] | ObjectStoragePath,
    *,
    conn_id: str | None = None,
    may_be_folder: bool = True,
    overwrite: Overwrite = "replace",
    on_progress: Callable[[int, int], None] | None = None,
    log: Log = _log,
) -> Downloaded:
    """Write the file of a resource to a target.

    :param client: Sends the requests.
    :param kind: The kind of the resource.
    :param id: The id of the resource.
    :param target: As in :func:`~airflow_provider_roughy.transfer.target.find_target`. In a folder, the id is the name.
    :param conn_id: The Airflow connection of the target's storage.
    :param may_be_folder: Whether the target may be a folder.
    :param overwrite: As in :meth:`~airflow_provider_roughy.transfer.target.Target.wants`.
    :param on_progress: As in :class:`Downloader`.
    :param log: The logger.
    :returns: Where the file is, and whether it was written.
    :raises RoughyError: As in :class:`Link`, :class:`Downloader` and
        :meth:`~airflow_provider_roughy.transfer.target.Target.open`.
    """
    call = kind.read(id)
    resource = client.run(call)
    link = Link.of(kind, resource)
    found = find_target(target, name=resource.file_name if may_be_folder else None, conn_id=conn_id)
    what = f"{kind.name.capitalize()} {id}"
    if not found.wants(link.size, overwrite):
        log.info("Skipped the download of %s: %s exists and has the same %s bytes", what, found.uri, link.size)
        return Downloaded(found.uri, written=False, size_bytes=link.size)
    began = time.monotonic()
    with found.open(link.size, overwrite) as sink:
        Downloader(
            client,
            what,
            link,
            sink,
            refresh=lambda: Link.of(kind, client.once(call)),
            on_progress=on_progress,
            log=log,
        ).download()
    DOWNLOAD_DURATION.record(time.monotonic() - began)
    if sink.written:
        log.info("Downloaded %s to %s (%d bytes, %.1f s)", what, found.uri, sink.offset, time.monotonic() - began)
    else:
        log.info("Discarded the download of %s: %s was created meanwhile and is the same", what, found.uri)
    return Downloaded(found.uri, sink.written, sink.offset)


@dataclass(frozen=True)
class Link:
    """A signed link to a file, which expires.

    :param url: The signed URL, which is a secret.
    :param size: Bytes of the file; ``None`` if Roughy does not report them.
    """

    url: str = field(repr=False)
    size: int | None

    @classmethod
    def of(cls, kind: Kind, resource: Any) -> Link:
        """Return the link of a resource that was just read.

        :param kind: The kind of the resource.
        :param resource: The resource, with ``state``, ``download_url`` and ``size_bytes``.
        :raises RoughyNotReadyError: If the resource is still being processed.
        :raises RoughyError: If it has failed or is not paid for.
        :raises RoughyProtocolError: If it is ready and has no link.
        """
        verdict = Verdict.of(kind, resource)
        verdict.raise_for_failure()
        if verdict.outcome is not Outcome.SUCCEEDED:
            raise RoughyNotReadyError(
                f"{kind.name.capitalize()} {verdict.id} is {verdict.state}: there is nothing to download yet. Wait for "
                f"it first, for instance with Roughy{kind.name.capitalize()}Sensor"
            )
        if resource.download_url is None:
            raise RoughyProtocolError(
                f"{kind.name.capitalize()} {verdict.id} is {verdict.state}, but Roughy named no link to its file; a "
                f"retry reads the {kind.name} again"
            )
        # Roughy has no empty files.
        return cls(resource.download_url, resource.size_bytes or None)


class Downloader:
    """Downloads one file into one sink, by the rules of this module.

    :param client: Sends the requests.
    :param what: The resource, for messages.
    :param link: The link to its file.
    :param sink: Receives the bytes.
    :param refresh: Requests a new link from Roughy, once.
    :param backoff: The retry policy, whose count of attempts starts again when bytes arrive.
    :param on_progress: Called with the bytes so far and the total, after each block of at most 1 MiB.
    :param log: The logger.
    """

    def __init__(
        self,
        client: Client,
        what: str,
        link: Link,
        sink: Sink,
        *,
        refresh: Callable[[], Link],
        backoff: Backoff | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        log: Log = _log,
    ) -> None:
        self._client = client
        self._what = what
        self._link = link
        self._sink = sink
        self._refresh = refresh
        self._on_progress = on_progress or (lambda done, total: None)
        self._log = log
        self._tries = TransferTries(f"Download of {what}", backoff, log)
        #: Bytes in all: by Roughy, or by the storage if Roughy does not report them.
        self._size = link.size
        #: The version of the bytes in the sink; ``None`` if the download cannot be resumed.
        self._etag: str | None = None
        #: The most bytes that the sink ever had. The count of attempts starts again beyond them only.
        self._reached = 0
        self._tally = Tally(BYTES_DOWNLOADED)
        #: Whether bytes have arrived by the current link.
        self._link_works = False
        #: Whether to request a new link before the next request.
        self._link_is_stale = False

    def download(self) -> None:
        """Download the whole file.

        :raises RoughyTargetError: If the target cannot be written.
        :raises RoughyDownloadError: If all attempts failed, or the task was killed.
        :raises RoughyError: If Roughy no longer has a file of this resource.
        """
        try:
            while self._sink.offset != self._size:
                try:
                    self._request()
                except RoughyError as error:
                    self._try_again(error)
        except RoughyInterruptedError as error:
            done, total = self._sink.offset, self._size
            raise RoughyDownloadError(f"{error} at {done} of {total} bytes of {self._what}", offset=done) from error
        finally:
            self._tally.end()

    def _request(self) -> None:
        """Send one request, and write the bytes of its reply."""
        if self._link_is_stale:
            self._renew_link()
        if self._etag is None:
            self._start_anew()
        start = self._sink.offset
        headers = {"Range": f"bytes={start}-", "If-Range": self._etag} if start and self._etag else {}
        with self._client.download(self._link.url, headers=headers) as reply:
            self._check(reply, start)
            for block in reply.blocks:
                self._write(block)
        if self._sink.offset != self._size:
            raise self._unexpected(f"ended at {self._sink.offset} of {self._size} bytes")

    def _renew_link(self) -> None:
        self._link = self._refresh()
        self._link_is_stale = self._link_works = False
        if self._link.size not in (None, self._size):
            self._size, self._etag = self._link.size, None

    def _check(self, reply: Download, start: int) -> None:
        """Check the head of a reply before its body is read.

        :param reply: The reply.
        :param start: The first byte that was requested.
        :raises RoughyProtocolError: If the body is not the requested part of the file.
        """
        headers = reply.headers
        coding = headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            raise self._unexpected(f"content coding {coding[:100]!r}, which was not requested")
        if is_page(headers):
            raise self._unexpected("an HTML page and not the file; it may be from a proxy or a login page")
        if reply.status == 206 and start:
            self._check_part(headers, start)
        elif reply.status == 200:
            self._check_whole(headers, start)
        else:
            raise self._unexpected(f"unexpected status {reply.status}")

    def _check_part(self, headers: Mapping[str, str], start: int) -> None:
        """Check that a part starts at the requested byte, and is of the same version (RFC 9110, 14.4)."""
        part = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", headers.get("content-range", ""))
        fits = part is not None and int(part[1]) == start and part[3] in ("*", str(self._size))
        if part is not None and "content-length" in headers:
            fits = fits and int(headers["content-length"]) == int(part[2]) + 1 - start
        # A storage that does not name the version of a part may not support If-Range either.
        if not fits or headers.get("etag") != self._etag:
            self._etag = None
            raise self._unexpected(
                f"another part or version than was requested: {headers.get('content-range', '')[:100]!r}"
            )

    def _check_whole(self, headers: Mapping[str, str], start: int) -> None:
        length = headers.get("content-length")
        if self._size is None and length is None:
            raise self._unexpected("neither Roughy nor the storage reports the length of the file")
        if self._size is None and length == "0":
            # Roughy has no empty files.
            raise self._unexpected("an empty file")
        if length is not None and self._size not in (None, int(length)):
            # Roughy may report another length by now.
            self._link_is_stale = True
            raise self._unexpected(f"{length} bytes, but Roughy reports {self._size}")
        if start:
            self._log.info("Restarting the download of %s: the storage does not send a part of it", self._what)
            self._start_anew()
        self._size = self._size if length is None else int(length)
        etag = headers.get("etag", "")
        self._etag = etag if re.fullmatch(r'"[!#-~]+"', etag) else None

    def _write(self, block: memoryview) -> None:
        if self._size is not None and self._sink.offset + len(block) > self._size:
            self._etag = None
            # What has arrived is not the whole file, although it may have the expected length by now.
            self._start_anew()
            raise self._unexpected(f"more than the expected {self._size} bytes")
        interrupt.check()
        self._tally.add(len(block))
        self._sink.write(block)
        if self._sink.offset > self._reached:
            self._reached = self._sink.offset
            self._link_works = True
            self._tries.refill()
        self._on_progress(self._sink.offset, self._size or 0)

    def _start_anew(self) -> None:
        if self._sink.offset:
            self._sink.restart()

    def _unexpected(self, what: str) -> RoughyProtocolError:
        return RoughyProtocolError(f"{Request('GET', self._link.url)}: {what}")

    def _try_again(self, error: RoughyError) -> None:
        """Pause before the next request, or end the download.

        :param error: The error of the last request. If it is not transient, it is raised.
        """
        if not error.transient:
            raise error
        if isinstance(error, RoughyGatewayError) and error.status == 416:
            self._etag = None
        elif isinstance(error, RoughyGatewayError):
            self._link_is_stale = True
            if self._link_works:
                self._link_works = False
                self._log.info("Renewing the link of %s, which has expired (%s)", self._what, error)
                return
        pause = self._tries.pause_after(error)
        left = float("inf") if self._reached else interrupt.time_left()
        if pause is not None:
            interrupt.pause(min(pause, left))
        # After the deadline of its task, only a file that has begun to arrive is completed.
        if pause is None or pause >= left:
            raise RoughyDownloadError(
                f"Download of {self._what} gave up at {self._sink.offset} of {self._size} bytes, after "
                f"{self._tries.failed} attempts without progress: {error}",
                offset=self._sink.offset,
            ) from error
