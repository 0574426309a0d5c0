"""The ledger: what has been ingested, kept across runs in a folder of any storage that Airflow knows.

One small JSON object a recording, so that writing needs no lock, and named so that one list of names tells what is
known:

- ``<key>.json`` is the entry. The key is a hash of what makes it the same recording: where it is, its size and version,
  the project, the language. It is created only if it is absent, which is how two runs agree on who uploads it, and it
  is never removed, save by :meth:`Ledger.forget`.
- ``<key>.2.json`` and so on: the same, after a claim whose owner died was taken over. The highest number counts.
- ``<key>.open`` stands beside an entry that nobody is done with yet, so that few entries have to be read. It comes
  before the entry and goes after its end was written: one that is left behind does no harm.
- ``note-<hash>.json`` is what was noted once, such as where a watcher began.
- ``runs/<hash>.json`` says until when an owner is believed to be alive. It renews that while it works; another run
  takes over what it has claimed after that, and not before. So the clocks of workers must agree to a few minutes.
  An owner may come to life again, as a retry does: it gives a sign of life before it looks who has taken over, and who
  takes over looks for that sign afterwards, so that at least one of them sees the other, and lets go.

Create-if-absent is atomic on a local file system, a network's one included, and on S3 (``If-None-Match``); what else
Airflow can write to is asked first and written then, so that two runs that overlap may both upload one recording there.

An entry is created whole. It is a line of JSON; a local one gets another line with each change, of which the last whole
one counts, so that whatever dies in the middle leaves what was there before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from airflow_provider_roughy.exceptions import RoughyLedgerEntryError, RoughyLedgerError, RoughyUnusableLedgerError
from airflow_provider_roughy.storage import as_text, local_path, may_pass, stored_path, without_secrets

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from airflow_provider_roughy.compat import ObjectStoragePath

#: Seconds without a sign of life after which an owner's claims may be taken over.
LEASE_SECONDS = 600.0
#: Seconds between two signs of life.
RENEW_SECONDS = 120.0
#: Entries that are looked for one by one rather than on a list of all.
_FEW = 20

#: States of an entry that ends: nobody has to look at it again.
ENDED = {"ready", "failed", "refused", "gone", "uploaded"}

_NAME = re.compile(r"([0-9a-f]{32})(?:\.([1-9]\d*))?\.(json|open)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger knows of one recording.

    :param key: Its name.
    :param source: Where the recording is, as the user reads it.
    :param wanted: What makes it this recording: its URI, size and version, project and language.
    :param owner: Whose it is: a task of a run, whichever try.
    :param series: What that is a run of, such as a task of a DAG.
    :param state: ``claimed``; ``uploading`` once there is an asset; then what became of it: ``uploaded``, or the
        asset's state in Roughy's words, ``refused`` or ``gone``. ``taken`` if it was not ingested, but announced.
    :param asset_id: The asset, once there is one.
    :param reason: Why it failed or was refused.
    :param all_sent: Whether Roughy may have all bytes.
    :param at: When this was written, in UTC.
    :param generation: How often it was claimed.
    """

    key: str
    source: str
    wanted: dict[str, Any]
    owner: str
    series: str = ""
    state: str = "claimed"
    asset_id: str | None = None
    reason: str | None = None
    all_sent: bool = False
    at: str = ""
    generation: int = field(default=1, compare=False)

    @property
    def name(self) -> str:
        """The name of its object."""
        return _entry_name(self.key, self.generation)


@dataclass(frozen=True)
class Names:
    """What one list of names tells.

    :param known: Those that were asked for, and have an entry.
    :param open: Those that nobody is done with yet, whether they were asked for or not.
    :param generations: How often each was claimed, if more than once.
    """

    known: set[str]
    open: set[str]
    generations: dict[str, int]


def entry_key(wanted: Mapping[str, Any]) -> str:
    """Return the name of what makes a recording the same one.

    :param wanted: The fingerprint of its source (``uri``, ``size`` and a version), ``project_id`` and ``language``.
    """
    path = local_path(wanted["uri"])
    # However a DAG spells it: file:///data/a.mp3, /data//a.mp3.
    same = {**wanted, "uri": os.path.abspath(path) if path is not None else wanted["uri"]}
    text = json.dumps(same, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Ledger:
    """A folder that remembers what has been ingested.

    :param location: A local path, a URI with a scheme that Airflow's object storage knows, or an ``ObjectStoragePath``.
    :param conn_id: The Airflow connection of that storage.
    """

    def __init__(self, location: str | os.PathLike[str] | ObjectStoragePath, *, conn_id: str | None = None) -> None:
        text = str(location)
        # A template that came to nothing: the root of all, or of a storage.
        if not re.sub(r"\A[A-Za-z][A-Za-z0-9+.-]*://", "", text).strip("/"):
            raise RoughyUnusableLedgerError(f"The ledger's location names no folder: {text!r}")
        text = text.rstrip("/")
        path = local_path(text)
        self._location = text
        #: What it is called, without credentials.
        self.uri = as_text(without_secrets(text))
        self._folder: _Folder = (
            _LocalFolder(os.path.abspath(path))
            if path is not None
            else _StoredFolder(text, conn_id or getattr(location, "conn_id", None))
        )

    @property
    def at_once(self) -> int:
        """How many entries are best read or written at once: a disk gains nothing by threads."""
        return self._folder.at_once

    def is_within(self, folder: str | os.PathLike[str]) -> bool:
        """Tell whether it is in a folder, where what it keeps could be taken for recordings.

        :param folder: A path, or a URI.
        """

        def place(location: str) -> str:
            path = local_path(location)
            return os.path.abspath(path) if path is not None else without_secrets(location)

        return f"{place(self._location)}/".startswith(f"{place(str(folder)).rstrip('/')}/")

    def check(self) -> None:
        """See whether it can be read and written, before anything depends on it.

        :raises RoughyUnusableLedgerError: If it cannot, for good.
        :raises RoughyLedgerError: If its storage is away.
        """
        probe = f"probe-{uuid4().hex}"
        with self._errors():
            self._folder.prepare()
            if not self._folder.create(probe, b"{}") or self._folder.read(probe) != b"{}":
                raise OSError(errno.EIO, "what was written cannot be read")
            self._folder.remove(probe)

    def names(self, keys: Collection[str]) -> Names:
        """List it once.

        :param keys: Whose entries are asked for.
        :raises RoughyLedgerError: If it cannot be listed.
        """
        found = Names(set(), set(), {})
        with self._errors():
            for name in self._folder.names():
                match = _NAME.fullmatch(name)
                if match is None:
                    continue
                key, generation, what = match[1], int(match[2] or 1), match[3]
                if what == "open":
                    found.open.add(key)
                    continue
                if key in keys:
                    found.known.add(key)
                if generation > 1:
                    found.generations[key] = max(generation, found.generations.get(key, 1))
        return found

    def known(self, keys: Collection[str]) -> set[str]:
        """Tell which entries there are: a few are looked for one by one, many on one list of names.

        :param keys: Whose entries are asked for.
        :raises RoughyLedgerError: If it cannot be read.
        """
        if len(keys) > _FEW:
            return self.names(keys).known
        with self._errors():
            return {key for key in keys if self._folder.read(_entry_name(key, 1)) is not None}

    def read(self, key: str, generation: int = 1) -> Entry | None:
        """Read an entry.

        :param generation: Which claim of it, as :class:`Names` tells.
        :returns: ``None`` if there is none.
        :raises RoughyLedgerEntryError: If it is broken.
        :raises RoughyLedgerError: If it cannot be read.
        """
        with self._errors():
            content = self._folder.read(_entry_name(key, generation))
        if content is None:
            return None
        for line in reversed(content.splitlines()):
            with suppress(ValueError, TypeError):
                values = json.loads(line)
                known = {name: values[name] for name in Entry.__dataclass_fields__ if name in values}
                return Entry(**{**known, "key": key, "generation": generation})
        raise RoughyLedgerEntryError(
            f"Entry {_entry_name(key, generation)} of ledger {self.uri} cannot be read: {content[:100]!r}. If a power "
            "cut left it like that, remove it; a recording that had an asset by then would be uploaded again"
        )

    def latest(self, key: str) -> Entry | None:
        """Read an entry as its last claim left it, without a list.

        :returns: ``None`` if there is none.
        :raises RoughyLedgerError: If it cannot be read.
        """
        found, generation = None, 1
        while (entry := self.read(key, generation)) is not None:
            found, generation = entry, generation + 1
        return found

    def claim(self, entry: Entry) -> Entry | None:
        """Claim a recording, if nobody else has.

        :param entry: Its entry. A claim that is taken over has the next ``generation``.
        :returns: The entry as it was written, or ``None`` if somebody else was faster.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        entry = replace(entry, at=_now())
        with self._errors():
            self._folder.mark(f"{entry.key}.open")
            return entry if self._folder.create(entry.name, _to_json(entry)) else None

    def take(self, entries: Sequence[Entry]) -> list[Entry]:
        """Write entries that nobody has to come back to, each if there is none of its key: one request each.

        :param entries: As they should be.
        :returns: As they are, in the same order: what was written, now or before, by whomever.
        :raises RoughyLedgerError: If the ledger cannot be used. What was written by then stays.
        """

        def take(entry: Entry) -> Entry:
            with self._errors():
                if self._folder.create(entry.name, _to_json(entry)):
                    return entry
            there = self.read(entry.key)
            if there is None:
                raise RoughyLedgerError(f"Entry {entry.name} of ledger {self.uri} was removed while it was asked for")
            return there

        if not entries:
            return []
        with self._errors():
            self._folder.prepare()
        now = _now()
        with ThreadPoolExecutor(self.at_once, thread_name_prefix="roughy-take") as pool:
            return list(pool.map(take, [replace(entry, at=now) for entry in entries]))

    def write(self, entry: Entry) -> Entry:
        """Write an entry anew, which this owner has claimed.

        :returns: The entry as it was written.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        entry = replace(entry, at=_now())
        with self._errors():
            self._folder.change(entry.name, _to_json(entry))
        return entry

    def close(self, entry: Entry) -> Entry:
        """Write what became of a recording in the end.

        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        entry = self.write(entry)
        with self._errors():
            self._folder.remove(f"{entry.key}.open")
        return entry

    def drop(self, entry: Entry) -> None:
        """Take back the claim of a recording for which nothing was made, or nothing is left, at Roughy.

        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        if self.is_taken_over(entry):
            return
        with self._errors():
            # The first claim last: as long as it is there, nobody can make it anew.
            for generation in range(entry.generation, 0, -1):
                self._folder.remove(_entry_name(entry.key, generation))
            self._folder.remove(f"{entry.key}.open")

    def give_back(self, entry: Entry) -> None:
        """Undo a take-over, whose entry says nothing yet that the one before it does not.

        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        with self._errors():
            self._folder.remove(entry.name)

    def is_taken_over(self, entry: Entry) -> bool:
        """Tell whether somebody else has taken over a claim.

        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        with self._errors():
            return self._folder.read(_entry_name(entry.key, entry.generation + 1)) is not None

    # ---- What is noted once

    def note(self, name: str) -> dict[str, Any] | None:
        """Return what was noted under a name, or ``None``.

        :raises RoughyLedgerError: If it cannot be read.
        """
        object_name = _note_name(name)
        with self._errors():
            content = self._folder.read(object_name)
        if content is None:
            return None
        with suppress(ValueError):
            noted = json.loads(content)
            if isinstance(noted, dict):
                return noted
        raise RoughyLedgerError(f"{object_name} of ledger {self.uri} cannot be read: {content[:100]!r}")

    def note_once(self, name: str, what: Mapping[str, Any]) -> dict[str, Any]:
        """Note something under a name, unless something was noted there before.

        :param name: What it is about, in any words.
        :param what: Plain JSON.
        :returns: What is noted there now.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        with self._errors():
            self._folder.create(_note_name(name), json.dumps(what, ensure_ascii=True).encode())
        noted = self.note(name)
        if noted is None:
            raise RoughyLedgerError(f"{_note_name(name)} of ledger {self.uri} was removed while it was written")
        return noted

    # ---- For people

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, each as its last claim left it.

        :raises RoughyLedgerError: If it cannot be read.
        """
        with self._errors():
            keys = {match[1] for name in self._folder.names() if (match := _NAME.fullmatch(name))}
        generations = self.names(()).generations
        for key in sorted(keys):
            entry = self.read(key, generations.get(key, 1))
            if entry is not None:
                yield entry

    def forget(self, key: str) -> bool:
        """Forget a recording: the next run ingests it again, and Roughy charges it again.

        :param key: The ``key`` of its entry.
        :returns: ``False`` if there was none.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        with self._errors():
            names = [name for name in self._folder.names() if (match := _NAME.fullmatch(name)) and match[1] == key]
            # The first claim last: as long as it is there, nobody can make it anew.
            for name in sorted(names, key=lambda name: name == _entry_name(key, 1)):
                self._folder.remove(name)
        return bool(names)

    # ---- Who is alive

    def alive_until(self, owner: str) -> float | None:
        """Return until when an owner is believed to be alive, in seconds since the epoch; ``None`` if it never began.

        :raises RoughyLedgerError: If it cannot be read.
        """
        with self._errors():
            content = self._folder.read(_run_name(owner))
        try:
            return None if content is None else float(json.loads(content)["until"])
        except (ValueError, TypeError, KeyError):
            return 0.0

    def is_alive(self, owner: str) -> bool:
        """Tell whether an owner is believed to be alive.

        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        return (self.alive_until(owner) or 0.0) > time.time()

    def keep_alive(self, owner: str, until: float) -> None:
        """Say until when an owner is to be believed alive.

        :param until: In seconds since the epoch; 0 to let others take over at once.
        :raises RoughyLedgerError: If it cannot be written.
        """
        content = json.dumps({"owner": owner, "until": until, "at": _now()})
        with self._errors():
            self._folder.write(_run_name(owner), content.encode())

    @contextmanager
    def lease(self, owner: str) -> Iterator[Lease]:
        """Be alive while the body runs, and let others take over what is left at its end, unless the lease is extended.

        :param owner: Whose claims these are.
        :raises RoughyLedgerError: If it cannot be written.
        """
        lease = Lease(self, owner)
        lease.renew()
        thread = threading.Thread(target=lease.run, name="roughy-ledger", daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            lease.ended.set()
            thread.join(5)
            if not lease.extended:
                try:
                    self.keep_alive(owner, 0.0)
                except RoughyLedgerError as err:  # Its time runs out by itself.
                    _log.warning("Ledger %s could not be told that this run is over: %s", self.uri, err)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (RoughyLedgerError, NotImplementedError):
            raise
        except Exception as err:  # Storages raise errors of their own, and not all of them are OSError.
            # ImportError: a storage whose provider is not installed.
            lasting = isinstance(err, ImportError) or not may_pass(err)
            cls = RoughyUnusableLedgerError if lasting else RoughyLedgerError
            raise cls(f"Ledger {self.uri} cannot be used: {type(err).__name__}: {err}") from err


class Lease:
    """A sign of life of one owner, given again and again.

    :param ledger: Where.
    :param owner: Whose.
    """

    def __init__(self, ledger: Ledger, owner: str) -> None:
        self._ledger = ledger
        self.owner = owner
        self.ended = threading.Event()
        #: Whether it goes on after the end of the work.
        self.extended = False
        self._until = time.time() + LEASE_SECONDS
        self._lapsed = False

    @property
    def is_sure(self) -> bool:
        """Whether nobody can have taken over anything, since the first sign of life."""
        self._lapsed = self._lapsed or time.time() > self._until - LEASE_SECONDS / 2
        return not self._lapsed

    def renew(self) -> None:
        """Give a sign of life.

        :raises RoughyLedgerError: If it cannot be written.
        """
        until = time.time() + LEASE_SECONDS
        self._ledger.keep_alive(self.owner, until)
        # One that came late does not mend what may have been taken over before it.
        if self.is_sure:
            self._until = until

    def extend(self, until: float) -> None:
        """Be believed alive after the end of the work, as one that waits elsewhere.

        :param until: In seconds since the epoch.
        :raises RoughyLedgerError: If it cannot be written.
        """
        self.ended.set()
        self._ledger.keep_alive(self.owner, until)
        self.extended = True

    def run(self) -> None:
        """Give a sign of life every two minutes, until it has ended."""
        while not self.ended.wait(RENEW_SECONDS):
            try:
                self.renew()
            except RoughyLedgerError as err:
                _log.warning("No sign of life could be given to the ledger, and is tried again: %s", err)


# ---- Where it is kept


class _Folder(Protocol):
    """What a storage has to be able to do."""

    at_once: int

    def prepare(self) -> None:
        """Make the folder, where storages have some."""

    def names(self) -> Iterable[str]:
        """List it."""

    def read(self, name: str) -> bytes | None:
        """Return an object, or ``None`` if there is none."""

    def mark(self, name: str) -> None:
        """See to it that there is an object, whatever is in it."""

    def write(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all."""

    def change(self, name: str, line: bytes) -> None:
        """Let an object end with a line. What was there before is kept or not, as is cheaper."""

    def create(self, name: str, content: bytes) -> bool:
        """Write an object if there is none, and return whether there was none."""

    def remove(self, name: str) -> None:
        """Remove an object, if there is one."""


class _LocalFolder:
    """A folder on this worker, or on a file system of a network.

    :param path: Where it is.
    """

    at_once = 1

    def __init__(self, path: str) -> None:
        self.path = path

    def prepare(self) -> None:
        os.makedirs(os.path.join(self.path, "runs"), exist_ok=True)

    def names(self) -> Iterator[str]:
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                yield entry.name

    def read(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError), open(os.path.join(self.path, name), "rb") as file:
            return file.read()
        return None

    def write(self, name: str, content: bytes) -> None:
        with self._beside(content) as new:
            os.replace(new, os.path.join(self.path, name))

    def mark(self, name: str) -> None:
        os.close(os.open(os.path.join(self.path, name), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))

    def change(self, name: str, line: bytes) -> None:
        # A line that was broken off must not spoil the next one. Buffered, for else a full disk takes a part of it and
        # says nothing.
        with open(os.path.join(self.path, name), "ab") as file:
            file.write(b"\n" + line)

    def create(self, name: str, content: bytes) -> bool:
        path = os.path.join(self.path, name)
        try:
            with self._beside(content) as new:
                os.link(new, path)
        except FileExistsError:
            return False
        except OSError as err:
            if err.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            # A file system without links.
            with suppress(FileExistsError), open(path, "xb") as file:
                file.write(content)
                return True
            return False
        return True

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, name))

    @contextmanager
    def _beside(self, content: bytes) -> Iterator[str]:
        new = os.path.join(self.path, f".{uuid4().hex}.new")
        try:
            with open(new, "xb") as file:
                file.write(content)
            yield new
        finally:
            with suppress(FileNotFoundError):
                os.unlink(new)


class _StoredFolder:
    """A folder in any storage that Airflow knows.

    :param uri: ``scheme://…``
    :param conn_id: The Airflow connection of that storage.
    """

    at_once = 16

    def __init__(self, uri: str, conn_id: str | None) -> None:
        self._uri = uri
        self._conn_id = conn_id

    @cached_property
    def _path(self) -> ObjectStoragePath:
        return stored_path(self._uri, self._conn_id)

    @cached_property
    def _fs(self) -> Any:
        return self._path.fs

    def _at(self, name: str) -> str:
        return f"{self._path.path.rstrip('/')}/{name}"

    def prepare(self) -> None:
        # An object storage has no folders, and s3fs would make a bucket.
        if "s3" not in self._fs.protocol:
            self._fs.makedirs(self._at("runs"), exist_ok=True)

    def names(self) -> Iterator[str]:
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(self._path.path, detail=False)
        except FileNotFoundError:
            return
        for path in paths:
            yield path.rpartition("/")[2]
        # Nor is the list kept in memory.
        self._fs.invalidate_cache()

    def read(self, name: str) -> bytes | None:
        try:
            content: bytes = self._fs.cat_file(self._at(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        self._fs.pipe_file(self._at(name), content)

    def mark(self, name: str) -> None:
        self._fs.pipe_file(self._at(name), b"")

    def change(self, name: str, line: bytes) -> None:
        self._fs.pipe_file(self._at(name), line)

    def create(self, name: str, content: bytes) -> bool:
        try:
            self._fs.pipe_file(self._at(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))


def _entry_name(key: str, generation: int) -> str:
    return f"{key}.json" if generation == 1 else f"{key}.{generation}.json"


def _run_name(owner: str) -> str:
    return f"runs/{hashlib.sha256(owner.encode()).hexdigest()[:32]}.json"


def _note_name(name: str) -> str:
    return f"note-{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _to_json(entry: Entry) -> bytes:
    # Not by asdict(), which copies all that is in it.
    values = {name: getattr(entry, name) for name in Entry.__dataclass_fields__ if name not in ("key", "generation")}
    return json.dumps(values, ensure_ascii=True).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
