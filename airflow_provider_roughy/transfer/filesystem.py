"""The file system of a storage, with the same meaning of each operation on every storage.

fsspec's file systems differ: sshfs ignores ``mode="create"`` and the range of a read, and does not connect again;
storages that are compatible with S3 have other error codes; some storages have folders. Only this module handles these
differences. Errors are raised unchanged: :func:`~airflow_provider_roughy.transfer.storage.kind_of` classifies them.
"""

from __future__ import annotations

import inspect
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from glob import has_magic
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from airflow_provider_roughy.transfer.storage import ErrorKind, http_status, kind_of, stored_path, unchanged_path

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import ObjectStoragePath

T = TypeVar("T")
U = TypeVar("U")

#: Storages in which folders are only parts of names, and an object appears once its last part was sent. In all others
#: an unfinished file is visible, so it is written under another name.
OBJECT_STORES = {"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "az", "adl"}

#: Attempts to create an object while another client is creating it, which S3 answers with 409.
_MAX_CONFLICTS = 5
#: Bytes handed to a file at once. OpenSSH closes the channel at a message of more than 256 KiB.
_PIECE_BYTES = 128 * 1024
#: The names of unfinished files, which nobody can guess.
_UNFINISHED = re.compile(r"\.roughy-[0-9a-f]{32}\.part")
#: Seconds without a write after which an unfinished file was left by a worker that died. Downloads retry for minutes.
_ABANDONED_SECONDS = 86_400.0
#: Errors of asyncssh that mean that its connection or channel is of no use any more.
_LOST = {"ConnectionLost", "DisconnectError", "SFTPConnectionLost", "SFTPNoConnection", "ChannelOpenError"}


class FileSystem:
    """The file system of a storage that Airflow knows.

    :param fs: Airflow's file system of fsspec.
    """

    def __init__(self, fs: Any) -> None:
        #: fsspec's file system.
        self.fs = fs
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        #: Whether folders exist by themselves, and unfinished files are visible.
        self.has_folders = not protocols & OBJECT_STORES
        self._is_s3 = bool(protocols & {"s3", "s3a"})
        self._is_azure = bool(protocols & {"abfs", "abfss", "az", "adl"})
        self._is_sftp = hasattr(fs, "_pool") and hasattr(fs, "_client")

    @classmethod
    def of(cls, uri: str, conn_id: str | None) -> tuple[FileSystem, str]:
        """Return the file system of a URI, and the path in it.

        :param uri: ``scheme://…``
        :param conn_id: The Airflow connection of that storage.
        :raises ValueError: If the URI has a password, Airflow knows no such storage, or reads another name from it.
        """
        path: ObjectStoragePath = stored_path(uri, conn_id)
        return cls(path.fs), unchanged_path(path, uri)

    def call(self, do: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call an operation; if the connection was lost, connect again and repeat it once.

        Only SFTP keeps a connection, also in a triggerer that runs for weeks. All others connect by themselves.

        :param do: A method of ``fs``, or a function that calls it. It may be repeated after it has taken effect.
        """
        try:
            return do(*args, **options)
        except Exception as error:
            if not (self._is_sftp and _is_lost(error)):
                raise
        self._connect_again()
        return do(*args, **options)

    def _connect_again(self) -> None:
        with suppress(Exception):
            self.fs.loop.call_soon_threadsafe(self.fs._client.abort)
        # In place, as Airflow and others keep this object.
        self.fs.__init__(*self.fs.storage_args, **self.fs.storage_options)

    def why_not_addressed(self, path: str) -> str:
        """Return why a file that is on a list cannot be addressed by its name; empty if it can.

        :param path: Its path.
        """
        if self._is_azure and "?versionid=" in path:
            return "adlfs reads `?versionid=` in a name as the version of another blob: rename it"
        return ""

    # ---- Reading

    def info(self, path: str) -> dict[str, Any]:
        """Return the metadata of a file or a folder.

        :param path: Its path.
        :raises FileNotFoundError: If it does not exist.
        """
        # fsspec caches lists, which would hide what other workers have written.
        self.fs.invalidate_cache()
        info: dict[str, Any] = self.call(self.fs.info, path)
        return info

    def children(self, path: str) -> list[dict[str, Any]]:
        """Return the metadata of what is in a folder.

        :param path: Its path.
        :raises FileNotFoundError: If it does not exist.
        """
        self.fs.invalidate_cache()
        try:
            infos: list[dict[str, Any]] = self.call(self.fs.ls, path, detail=True)
        finally:
            self.fs.invalidate_cache()
        return infos

    def exists(self, path: str) -> bool:
        """Return whether a file or a folder exists.

        :param path: Its path.
        """
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def read(self, path: str) -> bytes | None:
        """Return the content of a small file, or ``None`` if it does not exist.

        :param path: Its path.
        """
        try:
            content: bytes = self.call(self.fs.cat_file, path, **self._read_options)
        except FileNotFoundError:
            return None
        return content

    @cached_property
    def _read_options(self) -> dict[str, Any]:
        # Otherwise s3fs requests the size first, to read several parts at once.
        options = inspect.signature(getattr(self.fs, "_cat_file", self.fs.cat_file)).parameters
        return {"max_concurrency": 1} if "max_concurrency" in options else {}

    def open(self, path: str, block_bytes: int) -> IO[bytes]:
        """Open a file for reading.

        :param path: Its path.
        :param block_bytes: How much a storage reads ahead.
        """
        # ObjectStoragePath.open() would report each block, and the credentials, to Airflow's lineage. SFTP takes the
        # size of a block for that of a packet.
        options = {} if self._is_sftp else {"block_size": block_bytes}
        return cast("IO[bytes]", self.call(self.fs.open, path, "rb", **options))

    # ---- Writing small files

    def create(self, path: str, content: bytes) -> bool:
        """Create a small file, completely, if there is none of that name.

        If a reply was lost, the client of a storage repeats the request and is answered that the file exists. The
        caller then reads the file: its content names the try that has created it.

        :param path: Its path.
        :param content: Its content.
        :returns: Whether this call has created it.
        """
        if self.has_folders:
            return self._create_file(path, content)
        for attempt in range(1, _MAX_CONFLICTS + 1):
            try:
                self.fs.pipe_file(path, content, mode="create")
                return True
            except FileExistsError:
                return False
            except Exception as err:
                # Storages with the API of S3 have error codes of their own; the HTTP status is the same.
                status = http_status(err)
                if status == 412:
                    return False
                if status != 409 or attempt == _MAX_CONFLICTS:
                    raise
                # Another client is creating it right now.
                time.sleep(0.1 * attempt)
        raise AssertionError

    def write(self, path: str, content: bytes) -> None:
        """Write a small file, completely or not at all. It replaces one that exists.

        :param path: Its path.
        :param content: Its content.
        """
        if not self.has_folders:
            self.fs.pipe_file(path, content)
            return
        self.call(self._write_and_move, path, content)

    def _write_and_move(self, path: str, content: bytes) -> None:
        unfinished = self.unfinished_beside(path)
        try:
            self._write_new(unfinished, content)
            self.fs.mv(unfinished, path)
        except BaseException:
            self._remove_quietly(unfinished)
            raise

    def _write_new(self, path: str, content: bytes) -> None:
        with self.fs.open(path, "wb") as file:
            for piece in pieces(content):
                file.write(piece)

    def remove(self, paths: list[str], *, at_once: int = 1) -> None:
        """Remove files. Missing ones are no error.

        :param paths: Their paths.
        :param at_once: How many requests to send at once.
        """
        if self._is_s3 and len(paths) > 1 and not has_magic("".join(paths)):
            # One request for up to 1,000 of them. It takes paths for globs.
            self.fs.rm(paths)
            return
        for _ in for_each(self._remove, paths, at_once=at_once):
            pass

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.call(self.fs.rm_file, path)

    def _remove_quietly(self, path: str) -> None:
        with suppress(Exception):
            self.fs.rm_file(path)

    # ---- Files that become visible before they are complete

    def make_folder(self, path: str) -> None:
        """Create a folder and those that contain it, where the storage has folders.

        :param path: Its path.
        """
        if self.has_folders and path.strip("/"):
            self.call(self.fs.makedirs, path.rstrip("/"), exist_ok=True)

    def unfinished_beside(self, path: str) -> str:
        """Return the name of a new file beside another one, which nobody can guess and no list of recordings has.

        :param path: The path of the other file.
        """
        folder, slash, _ = path.rpartition("/")
        return f"{folder}{slash}.roughy-{secrets.token_hex(16)}.part"

    def remove_abandoned(self, unfinished: str) -> None:
        """Remove the unfinished files that workers left in a folder when they died.

        :param unfinished: A file there that was written just now: its time is that of the storage's clock.
        """
        folder = unfinished.rpartition("/")[0]
        with suppress(Exception):
            infos = [info for info in self.children(folder) if _UNFINISHED.fullmatch(info["name"].rpartition("/")[2])]
            times = {info["name"].rpartition("/")[2]: _seconds(info.get("mtime")) for info in infos}
            now = times.pop(unfinished.rpartition("/")[2], None)
            for name, written in times.items():
                if now is not None and written is not None and written < now - _ABANDONED_SECONDS:
                    self._remove_quietly(f"{folder}/{name}")

    def move(self, path: str, new: str, *, exclusive: bool) -> bool:
        """Give a file its final name.

        :param path: Its path.
        :param new: Its new path.
        :param exclusive: Whether it must not replace another file.
        :returns: ``False`` if it must not replace another file, and there is one; then it stays.
        """
        if not exclusive:
            self.fs.mv(path, new)
            return True
        if not self._is_sftp:
            return self._claim_and_move(path, new)
        try:
            linked = self.call(self._link, path, new)
        except NotImplementedError:
            return self._claim_and_move(path, new)
        if linked:
            self._remove_quietly(path)
        return linked

    def _claim_and_move(self, path: str, new: str) -> bool:
        """Create an empty file of that name exclusively, where the storage can do that, and replace it."""
        claimed = False
        try:
            self.fs.open(new, "xb").close()
            claimed = True
        except Exception as err:
            if self.exists(new):
                return False
            if not isinstance(err, (NotImplementedError, ValueError)):
                raise
        try:
            self.fs.mv(path, new)
        except BaseException:
            if claimed:
                self._remove_quietly(new)
            raise
        return True

    # ---- Exclusive creation where files become visible before they are complete

    def _create_file(self, path: str, content: bytes) -> bool:
        if self._is_sftp:
            with suppress(NotImplementedError):
                return self._create_by_link(path, content)
        try:
            return self.call(self._create_by_open, path, content)
        except (NotImplementedError, ValueError):
            # A file system without an exclusive open: `Ledger.check()` tests whether its `mode="create"` works.
            try:
                self.fs.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            return True

    def _create_by_link(self, path: str, content: bytes) -> bool:
        """Create a file completely: it gets its name when it has all its content, if no file has that name."""
        unfinished = self.unfinished_beside(path)

        def create() -> bool:
            self._write_new(unfinished, content)
            return self._link(unfinished, path)

        try:
            return self.call(create)
        finally:
            self._remove_quietly(unfinished)

    def _create_by_open(self, path: str, content: bytes) -> bool:
        """Create a file by an exclusive open. A worker that dies meanwhile leaves an empty file."""
        try:
            file = self.fs.open(path, "xb")
        except Exception as error:
            if self._is_taken(path, error):
                return False
            raise
        try:
            with file:
                file.write(content)
        except BaseException:
            self._remove_quietly(path)
            raise
        return True

    def _link(self, path: str, new: str) -> bool:
        """Give a file a second name, if no file has it.

        :returns: ``False`` if there is a file of that name.
        :raises NotImplementedError: If the server has no links.
        """
        from fsspec.asyn import sync

        async def link() -> None:
            async with self.fs._pool.get() as channel:
                await channel.link(path, new)

        try:
            sync(self.fs.loop, link)
        except Exception as error:
            if type(error).__name__ == "SFTPOpUnsupported":
                raise NotImplementedError("the SFTP server has no links") from error
            if self._is_taken(new, error):
                return False
            raise
        return True

    def _is_taken(self, path: str, error: Exception) -> bool:
        """Return whether an operation failed as there is a file of that name: SFTP has no error for that."""
        if isinstance(error, FileExistsError):
            return True
        return not isinstance(error, (NotImplementedError, ValueError)) and (
            kind_of(error) is ErrorKind.TRANSIENT and not _is_lost(error) and self.exists(path)
        )


def for_each(do: Callable[[T], U], values: Iterable[T], *, at_once: int) -> Iterator[U]:
    """Call a function for each value, and yield the results in order.

    :param do: The function.
    :param values: The values.
    :param at_once: How many calls to run at once.
    """
    values = list(values)
    if at_once == 1 or len(values) <= 1:
        yield from map(do, values)
        return
    with ThreadPoolExecutor(min(at_once, len(values)), thread_name_prefix="roughy-ledger") as pool:
        yield from pool.map(do, values)


def pieces(block: bytes | memoryview) -> Iterable[bytes]:
    """Cut a block into the pieces that every storage takes at once.

    In small pieces, the buffer of a file, which is copied when it is sent, exceeds its size by at most one of them.

    :param block: The block.
    """
    return (bytes(block[start : start + _PIECE_BYTES]) for start in range(0, len(block), _PIECE_BYTES))


def _is_lost(error: BaseException) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & _LOST) or isinstance(error, (BrokenPipeError, ConnectionResetError))


def _seconds(when: Any) -> float | None:
    if hasattr(when, "timestamp"):
        return float(when.timestamp())
    return float(when) if isinstance(when, (int, float)) else None
