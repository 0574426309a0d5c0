"""The ledger as the rest of the package uses it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_roughy.exceptions import (
    RoughyClaimedError,
    RoughyLedgerEntryError,
    RoughyLedgerError,
)
from airflow_provider_roughy.ledger.announced import Announcements
from airflow_provider_roughy.ledger.claims import (
    CreateResult,
    CreateVersion,
    FindLatest,
    FindResult,
    RemoveVersions,
    Step,
)
from airflow_provider_roughy.ledger.entries import (
    AGAIN_NAME,
    CONTENT_NAME,
    ENDED,
    LEGACY_NAME,
    PROBLEM_NAME,
    RESULT_NAME,
    VERSION_NAME,
    WENT_WELL,
    ClaimOwner,
    Entry,
    Progress,
    Result,
    Version,
    again_name,
    content_name,
    original_key,
    problem_name,
    result_name,
    utc_now,
    version_name,
)
from airflow_provider_roughy.ledger.lease import LEASE_SECONDS, RENEW_SECONDS, log_failed_renewal
from airflow_provider_roughy.ledger.legacy import (
    LegacyIndex,
    LegacyNames,
    build_index,
)
from airflow_provider_roughy.ledger.objects import uri_without_secrets
from airflow_provider_roughy.ledger.outputs import Outputs
from airflow_provider_roughy.ledger.runs import Runs
from airflow_provider_roughy.logs import Log
from airflow_provider_roughy.transfer.storage import (
    canonical_location,
    conn_id_in,
    without_secrets,
)

if TYPE_CHECKING:
    pass

T = TypeVar("T")
U = TypeVar("U")

#: Up to so many announced assets are read one by one, more of them with one list of names.
_MAX_POINT_READS = 20
#: How many entries are read before the first of them is used.
_MAX_READ_AHEAD = 1000
#: The object that marks a folder as a ledger.
_MARKER = "created"
#: The object that has all tasks identify recordings by their content.
_BY_CONTENT = "by-content"
#: Locations that a template renders if its value is missing.
_NOTHING = {"", "none", "null", "undefined"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """The names of a ledger's objects. Lists may lag; safety does not rely on them.

    :param done: The keys of recordings that have a result.
    :param open: The highest version of each recording that is not done, or whose result was not reported yet.
    :param problems: The state of each recording whose latest result is not successful.
    :param legacy: The names of objects of 0.2.
    :param again: The keys of the later results of each recording that was ingested again.
    """

    done: set[str]
    open: dict[str, int]
    problems: dict[str, str]
    legacy: set[str]
    again: dict[str, set[str]] = field(default_factory=dict)


class Ledger(Runs, Announcements, Outputs):
    """A folder that records what has been ingested.

    :param location: A local path, a URI with a scheme that Airflow's object storage knows, or an ``ObjectStoragePath``.
    :param conn_id: The Airflow connection of that storage.
    :raises RoughyUnusableLedgerError: If the location names no folder, or one that depends on the worker.
    """

    # ---- Recordings

    def snapshot(self) -> Snapshot:
        """List the names of its objects: one long list, and two short ones.

        :raises RoughyLedgerError: If the ledger cannot be listed.
        """
        with self._errors():
            names = set(self._folder.names())
            self._check_listed(names)
            # An object storage lists only folders that are not empty; s3fs sends more requests for one that is missing.
            versions, problems = (
                list(self._folder.names(folder)) if folder in names else [] for folder in ("open", "problems")
            )
            latest: dict[str, int] = {}
            for match in filter(None, map(VERSION_NAME.fullmatch, versions)):
                latest[match[1]] = max(int(match[2]), latest.get(match[1], 0))
            states = {match[1]: match[2] for match in filter(None, map(PROBLEM_NAME.fullmatch, problems))}
        done = {match[1] for match in filter(None, map(RESULT_NAME.fullmatch, names))}
        again: dict[str, set[str]] = {}
        for match in filter(None, map(AGAIN_NAME.fullmatch, problems)):
            if match[2] in done:
                again.setdefault(match[1], set()).add(match[2])
        for key, later in again.items():
            # Several runs may have ingested it again; one success is enough.
            ends = {states.get(each, "ready") for each in later}
            states[key] = "ready" if "ready" in ends else min(ends)
        return Snapshot(
            done,
            latest,
            {key: state for key, state in states.items() if key in done and state not in WENT_WELL},
            set(filter(LEGACY_NAME.fullmatch, names)),
            again,
        )

    def find_result(self, key: str) -> Result | None:
        """Read a result by its name.

        :param key: The recording.
        :returns: ``None`` if the recording is not done.
        :raises RoughyLedgerEntryError: If its content is damaged.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        name = result_name(key)
        content = self._read(name)
        if content is None:
            return None
        try:
            return Result.decode(key, content)
        except ValueError as err:
            raise RoughyLedgerEntryError(self._explain(name, content, err)) from None

    def find_success(self, key: str) -> Result | None:
        """Return the successful result of a recording that was ingested again, with one list of names.

        :param key: The recording.
        :returns: ``None`` if it was not ingested again, or not successfully.
        :raises RoughyLedgerEntryError: If its content is damaged.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        with self._errors():
            found = [match for match in map(AGAIN_NAME.fullmatch, self._folder.names("problems")) if match]
        results = (self.find_result(match[2]) for match in found if match[1] == key)
        return next((result for result in results if result is not None and result.state in WENT_WELL), None)

    def read_version(self, key: str, n: int) -> Version | None:
        """Read a version by its name.

        :param key: The recording.
        :param n: The number of the version, from :meth:`snapshot`.
        :returns: ``None`` if it does not exist.
        :raises RoughyClaimedError: If it is empty: it is being written, or its writer died.
        :raises RoughyLedgerEntryError: If its content is damaged.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        content = self._read(version_name(key, n))
        return None if content is None else self._decode_version(key, n, content)

    def find_latest(self, key: str) -> Version | None:
        """Read the highest version of a recording, without a list.

        :param key: The recording.
        :returns: ``None`` if there is none.
        :raises RoughyLedgerEntryError: If its content is damaged.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        n, latest = 0, None
        while (content := self._read(version_name(key, n + 1))) is not None:
            n, latest = n + 1, content
        return None if latest is None else self._decode_version(key, n, latest)

    def _decode_version(self, key: str, n: int, content: bytes) -> Version:
        name = version_name(key, n)
        if not content:
            raise RoughyClaimedError(
                f"{name} of ledger {self.uri} is empty: another run is claiming this recording right now, and a retry "
                "goes on. If no run is active, that run died while it wrote: remove that object"
            )
        try:
            return Version.decode(key, n, content)
        except ValueError as err:
            raise RoughyLedgerEntryError(self._explain(name, content, err)) from None

    def create_version(self, version: Version) -> bool:
        """Create a version if there is none of its number.

        :param version: The version.
        :returns: Whether this call created it, also if the storage's client has repeated the request.
        :raises RoughyLedgerError: If the ledger cannot be written. The version may be stored all the same.
        """
        content = replace(version, at=version.at or utc_now()).encode()
        with self._errors():
            return self._create(version_name(version.key, version.n), content)

    def create_result(self, result: Result) -> bool:
        """Create a result if there is none.

        :param result: The result.
        :returns: Whether this call created it.
        :raises RoughyLedgerError: If the ledger cannot be written. The result may be stored all the same.
        """
        content = replace(result, at=result.at or utc_now()).encode()
        problem = None if result.state in WENT_WELL else problem_name(result.key, result.state)
        with self._errors():
            if problem is not None:
                # Before the result, so that no count of results misses it.
                self._folder.create(problem, b"")
            if (original := original_key(result.identity)) is not None:
                self._folder.create(again_name(original, result.key), b"")
            created = self._create(result_name(result.key), content)
        if not created and problem is not None:
            there = self.find_result(result.key)
            if there is not None and there.state != result.state:
                with self._errors():
                    self._folder.remove([problem])
        return created

    def remove_versions(self, up_to: Iterable[tuple[str, int]]) -> None:
        """Remove versions of recordings whose results exist and were reported.

        :param up_to: Each recording, and the highest version to remove; those below it are removed, too.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        names = [version_name(key, n) for key, last in up_to for n in range(1, last + 1)]
        with self._errors():
            self._folder.remove(names)

    def perform(self, step: Step) -> Any:
        """Perform a step of :mod:`~airflow_provider_roughy.ledger.claims`, and return the reply.

        :param step: One of the storage's steps.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        match step:
            case FindResult(key=key):
                return self.find_result(key)
            case FindLatest(key=key):
                return self.find_latest(key)
            case CreateVersion(version=version):
                return self.create_version(version)
            case CreateResult(result=result):
                return self.create_result(result)
            case RemoveVersions(key=key, first=first, last=last):
                with self._errors():
                    self._folder.remove([version_name(key, n) for n in range(first, last + 1)])
                return None
            case _:
                raise TypeError(f"{step} is no step of the storage")

    # ---- Contents

    def identifies_by_content(self) -> bool:
        """Return whether the recordings of this ledger are identified by their content.

        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        return self._read(_BY_CONTENT) is not None

    def identify_by_content(self) -> None:
        """Have all tasks that use this ledger identify recordings by their content, from now on.

        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        with self._errors():
            self._folder.create(_BY_CONTENT, json.dumps({"since": utc_now()}).encode())

    def contents(self) -> dict[str, str]:
        """Return the SHA-256 of the files that were read, by the key that each has by its location: one list of names.

        :raises RoughyLedgerError: If the ledger cannot be listed.
        """
        with self._errors():
            matches = map(CONTENT_NAME.fullmatch, self._folder.names("contents"))
            return {match[1]: match[2] for match in matches if match}

    def note_content(self, key: str, digest: str) -> None:
        """Store the SHA-256 of a file.

        :param key: The key that it has by its location.
        :param digest: Hexadecimal digits.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        with self._errors():
            self._folder.create(content_name(key, digest), b"")

    # ---- Entries of 0.2

    def legacy(self, snapshot: Snapshot | None = None) -> LegacyIndex:
        """Read the entries of 0.2.

        :param snapshot: The names of the objects, if they have been listed.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        with self._errors():
            names = LegacyNames(self._folder.names() if snapshot is None else snapshot.legacy)
            return build_index(
                names,
                self._folder.read,
                self._folder.write,
                lambda do, values: list(self.each(do, values)),
                self._explain,
            )

    def finish_legacy(self, key: str) -> None:
        """Mark an entry of 0.2 as done: the result exists under the recording's new key.

        :param key: The key of 0.2's entry.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        with self._errors():
            self._folder.remove([f"{key}.open"])

    # ---- For users

    def entries(
        self,
        *,
        states: frozenset[str] | set[str] | None = None,
        on_error: Callable[[RoughyLedgerError], None] | None = None,
    ) -> Iterator[Entry]:
        """Yield the entries: results, recordings that are not done, and entries of 0.2.

        Of a recording that was ingested again, yield its later results only.

        :param states: Only those in these states. Others are not read, where the list of names is enough to tell.
        :param on_error: Called with the error of an entry that cannot be read, which is then left out. By default, it
            is raised.
        :raises RoughyLedgerEntryError: If an entry cannot be read.
        :raises RoughyClaimedError: If an entry is being written.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        snapshot = self.snapshot()
        assets: set[str | None] = set()
        done = [key for key in sorted(snapshot.done - snapshot.again.keys()) if self._may_be_in(states, key, snapshot)]
        is_open = states is None or not states.isdisjoint(Progress)
        open_keys = sorted(snapshot.open.keys() - snapshot.done) if is_open else []

        def read(key: str) -> Entry | RoughyLedgerError | None:
            try:
                if key in snapshot.done:
                    result = self.find_result(key)
                    return None if result is None else Entry.of_result(result)
                version = self.read_version(key, snapshot.open[key])
                return None if version is None else Entry.of_version(version)
            except (RoughyLedgerEntryError, RoughyClaimedError) as error:
                return error

        for keys in _batched([*done, *open_keys], _MAX_READ_AHEAD):
            for entry in self.each(read, keys):
                if isinstance(entry, RoughyLedgerError):
                    if on_error is None:
                        raise entry
                    on_error(entry)
                elif entry is not None:
                    assets.add(entry.asset_id)
                    if states is None or entry.state in states:
                        yield entry
        for entry in self._legacy_entries(snapshot, assets):
            if states is None or entry.state in states:
                yield entry

    @staticmethod
    def _may_be_in(states: frozenset[str] | set[str] | None, key: str, snapshot: Snapshot) -> bool:
        """Return whether a result may be in one of some states, by the list of names."""
        if states is None:
            return True
        problem = snapshot.problems.get(key)
        return not WENT_WELL.isdisjoint(states) if problem is None else problem in states

    def _legacy_entries(self, snapshot: Snapshot, assets: set[str | None]) -> Iterator[Entry]:
        """Yield the entries of 0.2, except those about a recording that has a version or result now."""
        names = LegacyNames(snapshot.legacy)
        for key, generation in sorted(names.generations.items()):
            name = LegacyNames.name(key, generation)
            content = self._read(name)
            if content is None:
                continue
            try:
                entry = Entry.decode(key, generation, content)
            except ValueError as err:
                raise RoughyLedgerEntryError(self._explain(name, content, err)) from None
            is_left = entry.state in ENDED or (key in names.open and entry.asset_id not in assets - {None})
            if entry.state == "taken" or is_left:
                yield entry

    def forget(self, key: str) -> bool:
        """Forget a recording: the next run ingests it again, and Roughy charges it again.

        If a run has ingested it again (``retry`` of the operator), all of its results are forgotten.

        This also removes the claim on a recording that is not done. While a run that uses this ledger is active,
        another run may then upload the recording a second time.

        :param key: The ``key`` of its entry.
        :returns: ``False`` if there was none.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        about = self._find_all(key)
        original = next(filter(None, (original_key(each.identity) for each in about)), key)
        with self._errors():
            problems = list(self._folder.names("problems"))
            later = {match[2] for match in filter(None, map(AGAIN_NAME.fullmatch, problems)) if match[1] == original}
            keys = {key, original, *later}
            names = [name for name in self._folder.names() if name.partition(".")[0] in keys]
            for folder, there in (("open", self._folder.names("open")), ("problems", problems)):
                names += [f"{folder}/{name}" for name in there if name.partition(".")[0] in keys]
            # The results go last: until then, no run can ingest the recording again.
            last = [name for name in names if name in map(result_name, keys)]
            self._folder.remove([name for name in names if name not in last])
            self._folder.remove(last)
        if about:
            self._forget_legacy(about)
        return bool(names)

    @property
    def conn_id(self) -> str | None:
        """The Airflow connection of the storage, given by itself or in the location."""
        return self._conn_id or conn_id_in(self._location)

    def forget_call(self, key: str) -> str:
        """Return the call of :meth:`forget` as Python code, for messages. It contains no password.

        :param key: The ``key`` of an entry.
        """
        options = f", conn_id={self.conn_id!r}" if self.conn_id else ""
        return f"Ledger({without_secrets(self._location)!r}{options}).forget({key!r})"

    def _find_all(self, key: str) -> list[Result | Version]:
        """Return the result and the latest version of a recording, if they can be read."""
        about: list[Result | Version] = []
        for find in (self.find_result, self.find_latest):
            with suppress(RoughyLedgerEntryError, RoughyClaimedError):
                if (found := find(key)) is not None:
                    about.append(found)
        return about

    def _forget_legacy(self, about: list[Result | Version]) -> None:
        """Forget the entries of 0.2 about a recording, which would still call it done."""
        assets = {each.asset_id for each in about} - {None}
        places = {(canonical_location(each.source), each.identity.get("size")) for each in about}
        for entry in self.legacy():
            if entry.asset_id in assets or (canonical_location(entry.source), entry.wanted["size"]) in places:
                self.forget(entry.key)


@asynccontextmanager
async def renewing(lease: Mapping[str, Any] | None, *, log: Log = _log) -> AsyncIterator[None]:
    """Renew the lease of a run while the body runs in an event loop, such as a wait in the triggerer.

    :param lease: What :meth:`Ledger.lease_to_dict` returned; ``None`` to do nothing.
    :param log: Logs renewals that fail.
    """
    if lease is None:
        yield
        return
    task = asyncio.create_task(_renew(lease, log))
    try:
        yield
    finally:
        task.cancel()


async def _renew(lease: Mapping[str, Any], log: Log) -> None:
    owner = ClaimOwner(lease["task_key"], lease["run_key"], lease["try_token"])

    def renew() -> None:
        ledger = Ledger(lease["ledger"], conn_id=lease["conn_id"])
        ledger.write_lease(owner, time.time() + LEASE_SECONDS)

    while True:
        try:
            await asyncio.to_thread(renew)
        except Exception as err:  # Without the lease, another run may report these recordings in its place.
            log_failed_renewal(log, f"{owner} in ledger {uri_without_secrets(lease['ledger'])}", err)
        await asyncio.sleep(RENEW_SECONDS)


def _batched(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the parts of a sequence.

    :param values: The sequence.
    :param size: How many values a part has, except the last one.
    """
    for start in range(0, len(values), size):
        yield values[start : start + size]
