"""What all targets share: :class:`Target`, a place to write a file, and :class:`Sink`, a file that is being written."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Literal, get_args

from airflow_provider_roughy.exceptions import RoughyTargetError, RoughyTargetExistsError, RoughyUnusableTargetError
from airflow_provider_roughy.transfer.storage import ErrorKind, as_text, kind_of, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

#: What to do if the target exists.
Overwrite = Literal["replace", "skip", "fail"]

#: Bytes of an existing file that are read at once.
_READ_BYTES = 256 * 1024

_log = logging.getLogger(__name__)


def check_overwrite(value: str) -> None:
    """Refuse an ``overwrite`` that does not exist. Operators call this when the DAG file is parsed.

    :param value: The value.
    :raises ValueError: If it is none of those of ``Overwrite``.
    """
    if value not in get_args(Overwrite):
        raise ValueError(f"overwrite must be one of {get_args(Overwrite)}, not {value!r}")


class Target(ABC):
    """A place where a file can be written.

    :param uri: Its name in messages, without credentials.
    """

    def __init__(self, uri: str) -> None:
        self.uri = as_text(uri)
        #: Whether it is a folder.
        self.is_folder = False
        #: Bytes of the existing file; ``None`` if there is none.
        self.size: int | None = None
        #: Why the storage did not say whether it exists. To replace a file, that permission is not needed.
        self.unseen: RoughyTargetError | None = None
        self._inspect()

    @abstractmethod
    def _inspect(self) -> None:
        """Find out what exists, and set the attributes."""

    @abstractmethod
    def _start(self, size: int | None, *, exclusive: bool) -> Sink:
        """Create an unfinished file.

        :param size: Its size in bytes, if it is known.
        :param exclusive: Whether it must not replace another file.
        """

    @abstractmethod
    def _read(self) -> IO[bytes]:
        """Open the existing file."""

    def exists(self) -> bool:
        """Return whether there is a file.

        :raises RoughyTargetError: If that could not be checked.
        """
        if self.unseen is not None:
            raise self.unseen
        return self.size is not None

    def wants(self, size: int | None, overwrite: Overwrite = "replace", *, digest: str | None = None) -> bool:
        """Return whether a file has to be written here.

        :param size: Its size in bytes, if it is known.
        :param overwrite: ``"replace"``: always. ``"skip"``: unless the same file exists. ``"fail"``: likewise, and a
            different file that exists is an error.
        :param digest: The SHA-256 of the new file, in hexadecimal. Without it, an existing file of the same size counts
            as the same one: an earlier try of the task has written it.
        :raises RoughyTargetExistsError: If a different file exists and ``overwrite`` is ``"fail"``.
        :raises RoughyTargetError: If ``overwrite`` is not ``"replace"`` and the storage does not say what exists.
        """
        if overwrite == "replace":
            return True
        if not self.exists():
            return True
        if self.size == size and (digest is None or digest == self._digest()):
            return False
        if overwrite == "fail":
            promised = "" if size is None else f"; the new file has {size}"
            if self.size == size:
                promised = " with another content than the new file"
            raise RoughyTargetExistsError(
                f"Target {self.uri} exists and has {self.size} bytes{promised}: give another target, or another "
                "`overwrite` than 'fail'"
            )
        return True

    def _digest(self) -> str:
        """Return the SHA-256 of the existing file in hexadecimal."""
        found = hashlib.sha256()
        with storage_errors(f"Target {self.uri} exists and cannot be read", RoughyTargetError), self._read() as file:
            while block := file.read(_READ_BYTES):
                found.update(block)
        return found.hexdigest()

    @contextmanager
    def open(
        self, size: int | None = None, overwrite: Overwrite = "replace", *, digest: str | None = None
    ) -> Iterator[Sink]:
        """Write a file. It appears when the body ends, and not at all if the body raises.

        :param size: Its size in bytes, if it is known.
        :param overwrite: As in :meth:`wants`, for a file that exists when the body ends. If the new one is not needed
            then, it does not appear, and the sink's ``written`` is false.
        :param digest: As in :meth:`wants`. With ``"fail"``, it is computed from what is written.
        :raises RoughyUnusableTargetError: If no file can be written there.
        :raises RoughyTargetExistsError: If a different file exists by then and ``overwrite`` is ``"fail"``.
        :raises RoughyTargetError: If writing fails.
        """
        sink = self._start(size, exclusive=overwrite == "fail")
        try:
            yield sink
            self._publish(sink, overwrite, digest)
        finally:
            if not sink.appeared:
                sink.discard()

    def _publish(self, sink: Sink, overwrite: Overwrite, digest: str | None) -> None:
        if overwrite != "replace":
            self._inspect()
        if overwrite == "skip":
            sink.written = self.wants(sink.offset, overwrite, digest=digest)
            if not sink.written:
                return
        may_appear = overwrite != "fail" or self.size is None
        if may_appear and sink.finish():
            return
        # The file that exists was created after wants() was called. If it is the same, a concurrent try has written it,
        # or this sink has and the storage's reply was lost.
        self._inspect()
        if self.wants(sink.offset, overwrite, digest=sink.digest):
            raise RoughyTargetError(
                f"Target {self.uri} was not written: while the download ended, another task created a file of that "
                "name and removed it again. A retry downloads the file again"
            )

    def save(self, content: bytes, overwrite: Overwrite = "replace") -> bool:
        """Write a file from memory.

        :param content: Its content.
        :param overwrite: As in :meth:`wants`.
        :returns: ``False`` if the same file exists already.
        :raises RoughyTargetError: As in :meth:`wants` and :meth:`open`.
        """
        digest = None if overwrite == "replace" else hashlib.sha256(content).hexdigest()
        if not self.wants(len(content), overwrite, digest=digest):
            return False
        with self.open(len(content), overwrite, digest=digest) as sink:
            sink.write(content)
        return sink.written


class Sink(ABC):
    """A file that is being written and has not appeared under its name yet.

    :param uri: The target's name in messages.
    :param exclusive: Whether it must not replace another file.
    """

    def __init__(self, uri: str, *, exclusive: bool) -> None:
        self.uri = uri
        self.exclusive = exclusive
        #: Bytes written so far.
        self.offset = 0
        #: Whether the target was written; false if the same file existed by then.
        self.written = True
        #: Whether the file has appeared under its name.
        self.appeared = False
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str | None:
        """The SHA-256 of what was written, in hexadecimal; ``None`` if it may replace another file."""
        return self._hash.hexdigest() if self.exclusive else None

    def write(self, block: bytes | memoryview) -> None:
        """Append a block. The caller may reuse its memory afterwards.

        :param block: The block.
        :raises RoughyTargetError: If writing fails.
        """
        with self._errors():
            self._write(block)
        if self.exclusive:
            self._hash.update(block)
        self.offset += len(block)

    def restart(self) -> None:
        """Discard what was written, and start at the first byte again.

        :raises RoughyTargetError: If writing fails.
        """
        with self._errors():
            self._restart()
        self.offset = 0
        self._hash = hashlib.sha256()

    def finish(self) -> bool:
        """Make the file appear under its name.

        :returns: ``False`` if it must not replace another file, and there is one.
        :raises RoughyTargetError: If that fails; the file does not appear then.
        """
        with self._errors():
            self.appeared = self._finish()
        return self.appeared

    def discard(self) -> None:
        """Remove what was written. A failure is logged only, as another error is being raised."""
        try:
            self._discard()
        except Exception as err:
            _log.warning("Removing the unfinished file beside target %s failed; you may remove it: %s", self.uri, err)

    def _errors(self) -> AbstractContextManager[None]:
        # A file or folder that vanishes meanwhile may be there for a retry.
        return storage_errors(
            f"Target {self.uri} cannot be written",
            RoughyTargetError,
            RoughyUnusableTargetError,
            is_final=lambda err: kind_of(err) in (ErrorKind.FORBIDDEN, ErrorKind.UNUSABLE),
        )

    @abstractmethod
    def _write(self, block: bytes | memoryview) -> None: ...

    @abstractmethod
    def _restart(self) -> None: ...

    @abstractmethod
    def _finish(self) -> bool: ...

    @abstractmethod
    def _discard(self) -> None: ...
