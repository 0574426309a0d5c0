"""Where a ledger is, whether its storage is suitable, and how its objects are read and created."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from airflow_provider_roughy.exceptions import RoughyLedgerError, RoughyUnusableLedgerError
from airflow_provider_roughy.ledger.entries import LEGACY_NAME, RESULT_NAME, utc_now
from airflow_provider_roughy.ledger.folder import Folder, LocalFolder, StoredFolder, for_each
from airflow_provider_roughy.ledger.legacy import STOP_CONTENT, STOP_KEY
from airflow_provider_roughy.transfer.storage import (
    as_text,
    canonical_location,
    local_path,
    storage_errors,
    without_secrets,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from airflow_provider_roughy.compat import ObjectStoragePath

T = TypeVar("T")
U = TypeVar("U")

#: The object that marks a folder as a ledger.
_MARKER = "created"
#: Locations that a template renders if its value is missing.
_NOTHING = {"", "none", "null", "undefined"}

_log = logging.getLogger(__name__)


class LedgerObjects:
    """The objects of a ledger.

    :param location: A local path, a URI with a scheme that Airflow's object storage knows, or an ``ObjectStoragePath``.
    :param conn_id: The Airflow connection of that storage.
    :param id: The expected :meth:`id`: if there is another ledger or none, :meth:`check` raises an error. By default,
        :meth:`check` creates the ledger if there is none.
    :raises RoughyUnusableLedgerError: If the location names no folder, or one that depends on the worker.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | ObjectStoragePath,
        *,
        conn_id: str | None = None,
        id: str | None = None,
    ) -> None:
        text = _checked_location(str(location))
        path = local_path(text)
        #: Its location, without credentials.
        self.uri = uri_without_secrets(text)
        self._folder: Folder = (
            LocalFolder(os.path.abspath(path))
            if path is not None
            else StoredFolder(text, conn_id or getattr(location, "conn_id", None))
        )
        self._id = id
        #: Whether :meth:`check` has found or begun it.
        self._is_there = False
        self._location = text
        self._conn_id = conn_id or getattr(location, "conn_id", None)

    def each(self, do: Callable[[T], U], values: Iterable[T]) -> Iterator[U]:
        """Call a function for each value, several at once if the storage gains by it; yield the results in order.

        :param do: The function, which uses the ledger.
        :param values: The values.
        """
        return for_each(do, values, at_once=self._folder.at_once)

    def is_within(self, folder: str | os.PathLike[str]) -> bool:
        """Return whether the ledger is in a folder, where its objects could be taken for recordings.

        :param folder: A path, or a URI.
        """
        spellings = {_spelled(self._location), canonical_location(self._location)}
        folders = {_spelled(str(folder)), canonical_location(str(folder))}
        return any(f"{own}/".startswith(f"{other.rstrip('/')}/") for own in spellings for other in folders)

    def holds(self, location: str) -> bool:
        """Return whether a file is in its folder.

        :param location: Its canonical path or URI.
        """
        return location.startswith(self._inside)

    @cached_property
    def _inside(self) -> tuple[str, ...]:
        return tuple(f"{own}/" for own in {_spelled(self._location), canonical_location(self._location)})

    def check(self) -> None:
        """Test that the storage is suitable for a ledger, before anything depends on it.

        Create an object, fail to create it again, read it, find it on a list, and remove it.

        :raises RoughyUnusableLedgerError: If the ledger cannot be used until a person corrects it.
        :raises RoughyLedgerError: If its storage is down.
        """
        if self._id is not None and (found := self.id()) != self._id:
            what = "no ledger" if found is None else "another ledger than the plan"
            raise RoughyUnusableLedgerError(
                f"Ledger {self.uri} cannot be used: this worker finds {what} there. Mount the volume of the ledger on "
                "this worker; if the ledger was replaced, plan again"
            )
        with self._errors():
            self._folder.prepare()
            self._check_exclusive_create()
            if self._folder.read(_MARKER) is None:
                self._begin()
        self._is_there = True

    def id(self) -> str | None:
        """Return its id, which another ledger does not have, also if it is created at the same location.

        :returns: Hexadecimal digits; ``None`` if there is no ledger here.
        :raises RoughyLedgerError: If it cannot be read.
        """
        content = self._read(_MARKER)
        return None if content is None else hashlib.sha256(content).hexdigest()[:32]

    def _check_listed(self, names: Collection[str]) -> None:
        """Refuse a list without the object that each ledger has: such a ledger is not empty, but unreachable.

        :param names: The names in its folder.
        """
        if self._is_there and _MARKER not in names:
            raise RoughyLedgerError(
                f"Ledger {self.uri} cannot be used: its objects have disappeared during this task. Is its volume still "
                "mounted?"
            )

    def created(self) -> str | None:
        """Return since when it is used, in UTC (ISO 8601); ``None`` if there is no ledger here.

        :raises RoughyLedgerError: If it cannot be read.
        """
        content = self._read(_MARKER)
        if content is None:
            with self._errors():
                is_of_0_2 = any(LEGACY_NAME.fullmatch(name) for name in self._folder.names())
            return "before 0.3" if is_of_0_2 else None
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            return str(json.loads(content)["created"])
        return "an unknown time"

    def _begin(self) -> None:
        """Mark a folder as a ledger, if it is empty or a ledger of 0.2."""
        if not any(RESULT_NAME.fullmatch(name) or LEGACY_NAME.fullmatch(name) for name in self._folder.names()):
            _log.warning(
                "Ledger %s is new: 0 recordings. Nothing counts as ingested yet; if there was a ledger before, stop "
                "the task and correct `ledger`",
                self.uri,
            )
        self._folder.create(f"{STOP_KEY}.json", STOP_CONTENT)
        self._folder.create(f"{STOP_KEY}.open", b"")
        self._folder.create(_MARKER, json.dumps({"created": utc_now(), "id": uuid4().hex}).encode())

    def _check_exclusive_create(self) -> None:
        probe = f"open/probe-{uuid4().hex}"
        first, second = b'{"probe": 1}', b'{"probe": 2}'
        try:
            if not self._create(probe, first):
                raise OSError(errno.EIO, "the storage says that a new object of a random name exists already")
            is_created_again = self._folder.create(probe, second)
            there = self._folder.read(probe)
            if is_created_again or there == second:
                raise RoughyUnusableLedgerError(
                    f"Ledger {self.uri} cannot be used: its storage overwrites an object that was to be created only "
                    "if absent, so that two runs could upload the same recording. Keep the ledger on another storage, "
                    "such as a local or network file system, S3, GCS or Azure"
                )
            if there != first:
                raise OSError(errno.EIO, "an object that was written cannot be read")
            if probe.rpartition("/")[2] not in set(self._folder.names("open")):
                raise OSError(errno.EIO, "an object that was written is not on the list of its folder")
        finally:
            with suppress(Exception):
                self._folder.remove([probe])

    def _read(self, name: str) -> bytes | None:
        with self._errors():
            return self._folder.read(name)

    def _create(self, name: str, content: bytes) -> bool:
        """Create an object, and tell whether this call created it.

        The client of a storage repeats a request whose reply was lost, and is then answered that the object exists. The
        content tells which try created it: no two contents are equal, as each names its try.
        """
        return self._folder.create(name, content) or self._folder.read(name) == content

    def _explain(self, name: str, content: bytes, why: object = "") -> str:
        return (
            f"{name} of ledger {self.uri} cannot be read{f' ({why})' if str(why) else ''}: {content[:100]!r}. Its "
            "recording is not ingested until you remove that object, such as after a power cut; other recordings are. "
            "A recording that had an asset by then is then uploaded and charged again"
        )

    def _errors(self) -> AbstractContextManager[None]:
        return storage_errors(
            f"Ledger {self.uri} cannot be used",
            RoughyLedgerError,
            RoughyUnusableLedgerError,
            through=(NotImplementedError,),
        )


def uri_without_secrets(location: str) -> str:
    """Return the location of a ledger without credentials, as messages name it.

    :param location: A path, or a URI.
    """
    return as_text(without_secrets(location))


def _checked_location(text: str) -> str:
    """Refuse a location that is not a folder, or that is another folder on each worker."""
    if text.strip().lower() in _NOTHING:
        raise RoughyUnusableLedgerError(
            f"The ledger's location names no folder: {text!r}. Did the template of `ledger` have nothing to render?"
        )
    if not re.sub(r"\A[A-Za-z][A-Za-z0-9+.-]*://", "", text).strip("/"):
        raise RoughyUnusableLedgerError(f"The ledger's location names no folder: {text!r}")
    path = local_path(text)
    if path is not None and not os.path.isabs(path):
        raise RoughyUnusableLedgerError(
            f"The ledger's location is a relative path: {as_text(text)!r}, which is another folder in each worker's "
            "working directory. Give an absolute path as `ledger`"
        )
    return text.rstrip("/")


def _spelled(location: str) -> str:
    path = local_path(location)
    return os.path.abspath(path) if path is not None else without_secrets(location)
