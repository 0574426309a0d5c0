"""What one start of an upload leaves to the next: an entry of the ledger, or a part of Airflow's task state store."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyClaimedError, RoughyLedgerError
from airflow_provider_roughy.ledger import ENDED, Entry, entry_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_roughy.durable import Memory
    from airflow_provider_roughy.ledger import Lease, Ledger
    from airflow_provider_roughy.source import Source

#: What a :class:`~airflow_provider_roughy.durable.DurableUpload` keeps its word under.
_UPLOAD = "roughy_upload"
#: States of an entry whose recording is not wholly uploaded, as far as anybody knows.
_OPEN = {"claimed", "uploading"}


@dataclass(frozen=True)
class Owner:
    """Whose a claim is, whichever try.

    :param series: What runs again and again, such as a task of a DAG.
    :param run: Which run of it.
    """

    series: str
    run: str

    def __str__(self) -> str:
        return f"{self.series}, run {self.run}"

    @classmethod
    def of(cls, ti: Any) -> Owner:
        """Name a task of a run of a DAG.

        :param ti: The task instance.
        """
        place = "" if ti.map_index in (None, -1) else f"[{ti.map_index}]"
        return cls(series=f"{ti.dag_id}.{ti.task_id}", run=f"{ti.run_id}{place}")


class Claim:
    """The entry of one recording in a ledger, which one owner wants; the memory of its upload.

    :param ledger: Where.
    :param owner: Who.
    :param wanted: What makes it this recording.
    :param lease: Whether nobody can have taken over what is the owner's.
    :param entry: The entry, if it is the owner's.
    :param takes_over: The entry of somebody else that the owner may take over.
    """

    def __init__(
        self,
        ledger: Ledger,
        owner: Owner,
        wanted: dict[str, Any],
        *,
        lease: Lease | None,
        entry: Entry | None = None,
        takes_over: Entry | None = None,
    ) -> None:
        self._ledger = ledger
        self._owner = owner
        self._wanted = wanted
        self._lease = lease
        # A take-over by an earlier try, which may have ended before it saw who lives, or could give it back: made anew.
        unsure = entry is not None and entry.generation > 1 and entry.asset_id is None
        self.entry, self._takes_over = (None, entry) if unsure else (entry, takes_over)

    def take(self) -> bool:
        """Make the entry the owner's, if nobody else was faster.

        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        if self.entry is not None:
            return True
        before = self._takes_over
        entry = Entry(
            entry_key(self._wanted),
            source=str(self._wanted["uri"]),
            wanted=self._wanted,
            series=self._owner.series,
            owner=str(self._owner),
        )
        if before is not None:
            entry = replace(
                entry,
                asset_id=before.asset_id,
                state=before.state,
                all_sent=before.all_sent,
                generation=before.generation + 1,
            )
        self.entry = self._ledger.claim(entry)
        if self.entry is not None and before is not None:
            if not self._may_keep(self.entry, before):
                self.entry = None
            elif before.asset_id is None:
                self._find_asset(before)
        return self.entry is not None

    def _may_keep(self, entry: Entry, before: Entry) -> bool:
        """Give a take-over back unless the one before is seen to be dead: one who lives goes on with what is his own.

        If it cannot be given back, or this ends before it is, that does no harm: who takes it over looks as well.

        :param entry: The take-over.
        :param before: What was taken over.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        alive = True
        try:
            owners = self._owners_until(before) if before.state not in ENDED else ()
            alive = any(self._ledger.is_alive(owner) for owner in owners)
        except RoughyLedgerError:
            self.entry = None
            raise
        finally:
            if alive:
                self._ledger.give_back(entry)
        return not alive

    def _owners_until(self, before: Entry) -> Iterator[str]:
        """Yield who may be at a recording: whose it is and, as long as nothing was made, whose it was before that.

        :param before: The entry that is taken over.
        """
        for generation in range(before.generation, 0, -1):
            entry = before if generation == before.generation else self._ledger.read(before.key, generation)
            if entry is not None and entry.owner != str(self._owner):
                yield entry.owner
            if entry is not None and entry.asset_id is not None:
                return

    def _find_asset(self, before: Entry) -> None:
        """Take up an asset that somebody has made who came to life again, and died, since the entry was read.

        :param before: What was taken over.
        """
        for generation in range(before.generation, 0, -1):
            now = self._ledger.read(before.key, generation)
            if self.entry is not None and now is not None and now.asset_id is not None:
                self.entry = self._ledger.write(replace(self.entry, asset_id=now.asset_id, state=now.state))
                return

    def end(self, state: str, reason: str | None = None) -> None:
        """Write what became of the recording, after which nobody has to look at it again.

        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        if self.entry is not None:
            self.entry = self._ledger.close(replace(self.entry, state=state, reason=reason))

    def leave(self, state: str) -> None:
        """Write how the recording stands, for somebody to look at it again.

        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        if self.entry is not None:
            self.entry = self._ledger.write(replace(self.entry, state=state))

    def drop(self) -> None:
        """Take it back: there is nothing at Roughy that anybody would come back for.

        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        if self.entry is not None:
            self._ledger.drop(self.entry)

    # ---- The memory of a DurableUpload

    def get(self, key: str) -> Any:
        """Return what was kept under a key, or ``None``."""
        entry = self.entry or self._takes_over
        if key != _UPLOAD or entry is None or entry.asset_id is None:
            return None
        return {"asset_id": entry.asset_id, "wanted": entry.wanted, "all_sent": entry.all_sent}

    def set(self, key: str, value: Any) -> None:
        """Keep a value.

        :raises RoughyClaimedError: If somebody else has taken the entry over.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        if key != _UPLOAD:
            return
        # What another run has ended is claimed only if it has to be uploaded anew.
        if not self.take() or self.entry is None:
            raise RoughyClaimedError(f"{self._wanted['uri']}: another run was faster to claim it")
        self.entry = self._ledger.write(
            replace(self.entry, asset_id=value["asset_id"], state="uploading", all_sent=value.get("all_sent", False))
        )
        if self._lease is not None and not self._lease.is_sure and self._ledger.is_taken_over(self.entry):
            raise RoughyClaimedError(f"{self.entry.source}: this run was away so long that another one took it over")


@contextmanager
def remembered(
    ledger: Ledger, source: Source, *, owner: Owner, project_id: str, language: str | None
) -> Iterator[Memory]:
    """Claim one recording, and give the memory of its upload; if the body ends well, it counts as uploaded.

    :param ledger: What remembers.
    :param source: The recording.
    :param owner: Whose the claim is.
    :param project_id: The project of a new asset.
    :param language: The language spoken.
    :raises RoughyClaimedError: If another run, which is alive, is about to upload it.
    :raises RoughyLedgerError: If the ledger cannot be used.
    """
    ledger.check()
    wanted = {**source.fingerprint, "project_id": project_id, "language": language}
    with ledger.lease(str(owner)) as lease:
        found = ledger.latest(entry_key(wanted))
        mine = found is not None and found.owner == str(owner)
        if found is not None and not mine and found.state in _OPEN and ledger.is_alive(found.owner):
            raise RoughyClaimedError(f"{source.uri}: {found.owner} is about to upload it")
        claim = Claim(
            ledger, owner, wanted, lease=lease, entry=found if mine else None, takes_over=None if mine else found
        )
        if (found is None or found.state in _OPEN) and not claim.take():
            raise RoughyClaimedError(f"{source.uri}: another run was faster to claim it")
        yield claim
        claim.end("uploaded")


class LockedMemory:
    """A memory for several threads: Airflow's task state store talks over one pipe.

    :param memory: Theirs.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """Return what was kept under a key, or ``None``."""
        with self._lock:
            return self._memory.get(key)

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        with self._lock:
            self._memory.set(key, value)


class PartOfMemory:
    """One recording's part of a memory that many share.

    :param memory: That of all.
    :param part: The recording.
    """

    def __init__(self, memory: Memory, part: str) -> None:
        self._memory = memory
        self._part = part

    def get(self, key: str) -> Any:
        """Return what was kept under a key, or ``None``."""
        return self._memory.get(f"{key}_{self._part}")

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        self._memory.set(f"{key}_{self._part}", value)
