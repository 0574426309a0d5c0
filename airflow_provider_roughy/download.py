"""The transfer out: a file of Roughy's, by its signed link, into a target.

Links expire, storages break off, proxies answer in their place. So one rule says what is taken:

- The file is as long as Roughy says. What announces another length, is packed, or is a page, is not taken.
- A transfer that broke goes on where it ended, by ``Range``, if the storage has named a version of the file (a strong
  ``ETag``) and gives exactly this part of exactly this version (``If-Range``). In all other cases it starts anew.
- A link that is refused is replaced by a fresh one of Roughy's; so is one to a file of another length.
- Each request that fails is counted and followed by a pause; only bytes beyond all before count anew. A link that has
  worked and is refused now has expired, which is no failure.

The key never goes to a storage, and a link into no message.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import Request
from airflow_provider_roughy.exceptions import (
    RoughyDownloadError,
    RoughyError,
    RoughyGatewayError,
    RoughyNotReadyError,
    RoughyProtocolError,
)
from airflow_provider_roughy.lifecycle import Outcome, Verdict
from airflow_provider_roughy.retry import TransferTries
from airflow_provider_roughy.target import find_target

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from airflow_provider_roughy.client import Client, Download
    from airflow_provider_roughy.compat import ObjectStoragePath
    from airflow_provider_roughy.lifecycle import Kind
    from airflow_provider_roughy.retry import Backoff
    from airflow_provider_roughy.target import Overwrite, Sink, Target

_log = logging.getLogger(__name__)


def download(
    client: Client,
    kind: Kind,
    id: str,
    target: str | os.PathLike[str] | ObjectStoragePath,
    *,
    conn_id: str | None = None,
    overwrite: Overwrite = "replace",
    on_progress: Callable[[int, int], None] | None = None,
    log: Any = _log,
) -> Target:
    """Write the file of a resource to a target.

    :param client: Sends the requests.
    :param kind: What it is.
    :param id: Which.
    :param target: As in :func:`~airflow_provider_roughy.target.find_target`; in a folder it is named by its id.
    :param conn_id: The Airflow connection of the target's storage.
    :param overwrite: As in :meth:`~airflow_provider_roughy.target.Target.wants`.
    :param on_progress: As in :class:`Downloader`.
    :param log: Where to say what happens.
    :returns: The target.
    :raises RoughyError: As in :class:`Link` and :class:`Downloader`.
    """
    call = kind.read(id)
    resource = client.run(call)
    link = Link.of(kind, resource)
    found = find_target(target, name=resource.file_name, conn_id=conn_id)
    what = f"{kind.name.capitalize()} {id}"
    if not found.wants(link.size, overwrite):
        log.info("%s: %s is there already and has its %s bytes; nothing to download", what, found.uri, link.size)
        return found
    with found.open(link.size) as sink:
        Downloader(
            client,
            what,
            link,
            sink,
            refresh=lambda: Link.of(kind, client.once(call)),
            on_progress=on_progress,
            log=log,
        ).download()
    log.info("%s: written to %s (%d bytes)", what, found.uri, sink.offset)
    return found


@dataclass(frozen=True)
class Link:
    """Where a file can be fetched for a while.

    :param url: The signed URL; a secret.
    :param size: Bytes of the file, or ``None`` if Roughy does not say.
    """

    url: str = field(repr=False)
    size: int | None

    @classmethod
    def of(cls, kind: Kind, resource: Any) -> Link:
        """Return the link of a resource as it was just read.

        :param kind: What it is.
        :param resource: The reply, with ``state``, ``download_url`` and ``size_bytes``.
        :raises RoughyNotReadyError: If there is nothing to download yet.
        :raises RoughyError: If there never will be: it failed, or is not paid for.
        :raises RoughyProtocolError: If it is ready and has no link.
        """
        verdict = Verdict.of(kind, resource)
        verdict.raise_for_failure()
        if verdict.outcome is not Outcome.SUCCEEDED:
            raise RoughyNotReadyError(
                f"{kind.name.capitalize()} {verdict.id} is {verdict.state}: there is nothing to download yet"
            )
        if resource.download_url is None:
            raise RoughyProtocolError(f"{kind.name.capitalize()} {verdict.id} is {verdict.state} and has no link")
        return cls(resource.download_url, resource.size_bytes if isinstance(resource.size_bytes, int) else None)


class Downloader:
    """Moves one file of Roughy's into one sink, whatever happens on the way; the module says by which rule.

    :param client: Sends the requests.
    :param what: What is downloaded, for messages.
    :param link: Where it is.
    :param sink: Takes the bytes.
    :param refresh: Asks Roughy once for a fresh link.
    :param backoff: The retry policy; its tries are counted anew whenever bytes arrived.
    :param on_progress: Called with the bytes so far and the bytes in all, after each block of at most 1 MiB.
    :param log: Where each pause is told.
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
        log: Any = _log,
    ) -> None:
        self._client = client
        self._what = what
        self._link = link
        self._sink = sink
        self._refresh = refresh
        self._on_progress = on_progress or (lambda done, total: None)
        self._log = log
        self._tries = TransferTries(f"Download of {what}", backoff, log)
        #: Bytes in all; where Roughy does not say, the storage's word.
        self._size = link.size
        #: The version that the bytes in the sink are of, or ``None`` if they cannot be gone on with.
        self._etag: str | None = None
        #: The most bytes that the sink ever had; only beyond them are the tries counted anew.
        self._reached = 0
        #: Whether the link has brought it any further.
        self._link_works = False
        #: Whether the next request wants a fresh link.
        self._link_is_stale = False

    def download(self) -> None:
        """Move the whole file.

        :raises RoughyTargetError: If it cannot be written.
        :raises RoughyDownloadError: If the retries are used up.
        :raises RoughyError: If Roughy has nothing to download any more.
        """
        while self._sink.offset != self._size:
            try:
                self._take()
            except RoughyError as error:
                self._try_again(error)

    def _take(self) -> None:
        """Send one request, and take what comes."""
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
            raise self._odd(f"ended at {self._sink.offset} of {self._size} bytes")

    def _renew_link(self) -> None:
        self._link = self._refresh()
        self._link_is_stale = self._link_works = False
        if self._link.size not in (None, self._size):
            self._size, self._etag = self._link.size, None

    def _check(self, reply: Download, start: int) -> None:
        """Look at the head of a reply before any byte is taken.

        :param start: From which byte on it was asked for.
        :raises RoughyProtocolError: If it is not what was asked for.
        """
        headers = reply.headers
        packed = headers.get("content-encoding", "").strip().lower()
        if packed not in ("", "identity"):
            raise self._odd(f"packed as {packed[:100]!r}, which was not asked for")
        if headers.get("content-type", "").lower().startswith("text/html"):
            raise self._odd("a page and not the file; a proxy or a login page may stand between")
        if reply.status == 206 and start:
            self._check_part(headers, start)
        elif reply.status == 200:
            self._check_whole(headers, start)
        else:
            raise self._odd(f"status {reply.status}, which was not asked for")

    def _check_part(self, headers: Mapping[str, str], start: int) -> None:
        """Check that a part begins where we stand, and is of the version that we have (RFC 9110, 14.4)."""
        part = re.fullmatch(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)", headers.get("content-range", ""))
        begins = part is not None and int(part[1]) == start and part[2] in ("*", str(self._size))
        if not begins or headers.get("etag", self._etag) != self._etag:
            self._etag = None
            raise self._odd(f"another part or version than was asked for: {headers.get('content-range', '')[:100]!r}")

    def _check_whole(self, headers: Mapping[str, str], start: int) -> None:
        length = headers.get("content-length")
        if self._size is None and length is None:
            raise self._odd("neither Roughy nor the storage says how long it is")
        if length is not None and self._size not in (None, int(length)):
            # Roughy may know better by now.
            self._link_is_stale = True
            raise self._odd(f"{length} bytes, where Roughy promises {self._size}")
        if start:
            self._log.info("%s: the storage gives no part of it; starting anew", self._what)
            self._start_anew()
        self._size = self._size if length is None else int(length)
        etag = headers.get("etag", "")
        self._etag = etag if re.fullmatch(r'"[!#-~]*"', etag) else None

    def _write(self, block: memoryview) -> None:
        if self._size is not None and self._sink.offset + len(block) > self._size:
            self._etag = None
            raise self._odd(f"more than the {self._size} bytes that were promised")
        self._sink.write(block)
        if self._sink.offset > self._reached:
            self._reached = self._sink.offset
            self._link_works = True
            self._tries.refill()
        self._on_progress(self._sink.offset, self._size or 0)

    def _start_anew(self) -> None:
        if self._sink.offset:
            self._sink.restart()

    def _odd(self, what: str) -> RoughyProtocolError:
        return RoughyProtocolError(f"{Request('GET', self._link.url)}: {what}")

    def _try_again(self, error: RoughyError) -> None:
        """Pause before the next request, or end the transfer.

        :param error: Why. One that is not transient ends it.
        """
        if not error.transient:
            raise error
        if isinstance(error, RoughyGatewayError) and error.status == 416:
            self._etag = None
        elif isinstance(error, RoughyGatewayError):
            self._link_is_stale = True
            if self._link_works:
                self._link_works = False
                self._log.info("%s: its link has expired; going on with a fresh one (%s)", self._what, error)
                return
        pause = self._tries.pause_after(error)
        if pause is None:
            raise RoughyDownloadError(
                f"Download of {self._what} gave up at {self._sink.offset} of {self._size} bytes, after "
                f"{self._tries.failed} attempts without progress: {error}",
                offset=self._sink.offset,
            ) from error
        time.sleep(pause)
