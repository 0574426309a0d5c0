"""Plan the ingest of a whole archive: list, identify and price each file once, and write a manifest.

The plan creates nothing at Roughy and claims nothing. It decides by the same rules as a batch, and works in chunks:
only the list of the files and the names in the ledger are in memory as a whole.

A plan that is repeated in the same run keeps a line with the status ``done`` for each recording that an earlier one had
planned and that is done: the shards report it again, and do not upload it.

The budget is spent here. What an earlier manifest of the same run has planned stays planned and counts as spent, as
tasks that read it may be at work: so all manifests of a run together never exceed ``max_credits``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughyLedgerEntryError
from airflow_provider_roughy.ingest.batch import why_not
from airflow_provider_roughy.ingest.compare import Standing, compare, has_legacy, read_versions, use_names_of
from airflow_provider_roughy.ingest.content import identify_all
from airflow_provider_roughy.ingest.decide import Action
from airflow_provider_roughy.ingest.files import Problem
from airflow_provider_roughy.ingest.manifest import (
    DEFERRED,
    DONE,
    PLANNED,
    REJECTED,
    Manifest,
    ManifestWriter,
    Planned,
    quoted_path,
)
from airflow_provider_roughy.ingest.plan import price
from airflow_provider_roughy.ingest.recorder import Recorder
from airflow_provider_roughy.ingest.result import Status
from airflow_provider_roughy.ingest.transfers import Transfers
from airflow_provider_roughy.ingest.upload import UploadItem
from airflow_provider_roughy.ledger import Progress, Result, Snapshot
from airflow_provider_roughy.logs import Log, counted
from airflow_provider_roughy.transfer.storage import location_digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from airflow_provider_roughy.hooks import RoughyHook
    from airflow_provider_roughy.ingest.files import SourceFile
    from airflow_provider_roughy.ledger import ClaimOwner, Ledger, LegacyIndex

#: Files that are compared with the ledger and priced at once.
_CHUNK = 1000

_log = logging.getLogger(__name__)


@dataclass
class Budget:
    """What a plan may still cost.

    :param left: Credits that are left; ``None`` for no limit.
    :param limit: What sets the limit, for messages.
    """

    left: int | None
    limit: str = "`max_credits`"

    @classmethod
    def of(cls, max_credits: int | None, *, spent: int, reserved: int, balance: int) -> Budget:
        """Return the budget of a plan.

        :param max_credits: The most credits that the run may cost; ``None`` for no limit, not even the balance.
        :param spent: Credits of recordings that earlier manifests of the run had planned, and that are done.
        :param reserved: Credits of those that are not done.
        :param balance: Credits that the account has.
        """
        if max_credits is None:
            return cls(None)
        left = min(max_credits - spent, balance) - reserved
        return cls(left, "the balance" if balance <= max_credits - spent else "`max_credits`")

    def take(self, cost: int) -> str | None:
        """Spend credits; return why they cannot be spent, or ``None``."""
        if self.left is None:
            return None
        if cost > self.left:
            return f"it costs {counted(cost, 'credit')}, and {self.limit} leaves {max(self.left, 0):,}"
        self.left -= cost
        return None


@dataclass
class EarlierPlan:
    """What an earlier manifest of the same run has planned.

    :param credits: The credits of each planned recording, by key.
    :param unpriced: The planned recordings whose costs are neither in ``credits`` nor in ``spent``.
    :param rejected: The reason of each rejected one, by key.
    :param spent: Credits of recordings that still earlier manifests of the run had planned.
    :param paid: Those of them that are known to be done, by key.
    :param lines: Reads its lines.
    :param planned: All recordings that it had planned: they stay in the manifest, so that the report has them.
    """

    credits: dict[str, int] = field(default_factory=dict)
    unpriced: set[str] = field(default_factory=set)
    rejected: dict[str, str] = field(default_factory=dict)
    spent: int = 0
    paid: dict[str, int] = field(default_factory=dict)
    planned: set[str] = field(default_factory=set)
    lines: Callable[[], Iterable[Planned]] = tuple

    @classmethod
    def of(cls, manifest: Manifest, lines: Callable[[], Iterable[Planned]]) -> EarlierPlan:
        """Read a manifest of the same run.

        :param manifest: The manifest.
        :param lines: Reads its lines again, when it is closed.
        """
        plan = cls(spent=manifest.header.spent, lines=lines)
        for planned in manifest.lines():
            if planned.status in (PLANNED, DONE):
                plan.planned.add(planned.key)
            if planned.status == DONE and planned.credits is not None:
                plan.paid[planned.key] = planned.credits
            elif planned.status in (PLANNED, DONE) and manifest.header.credits is None:
                plan.unpriced.add(planned.key)
            elif planned.status == PLANNED:
                plan.credits[planned.key] = planned.credits or 0
            elif planned.status == REJECTED:
                plan.rejected[planned.key] = planned.reason or ""
        return plan

    def spend(self, snapshot: Snapshot) -> int:
        """Forget the recordings that are done; return their credits, and those of earlier manifests."""
        for key in self.credits.keys() & snapshot.done:
            credits = self.credits.pop(key)
            # Only what was uploaded and prepared costs anything, also if it was deleted since.
            self.pay(key, 0 if snapshot.problems.get(key) in (Status.FAILED, Status.REJECTED) else credits)
        return self.spent

    def pay(self, key: str, credits: int) -> None:
        """Count what a recording that is done has cost."""
        self.paid[key] = credits
        self.spent += credits


class Planner:
    """One try of a plan.

    :param hook: Talks to Roughy.
    :param owner: This try of this run.
    :param ledger: The ledger.
    :param dag_id: The DAG.
    :param run_id: The run, whose other tasks ingest the plan.
    :param project_id: The project of new assets.
    :param language: The language spoken; ``None`` lets Roughy detect it.
    :param by_content: Whether to identify recordings by their content.
    :param parallel: How many files are read at once.
    :param log: Logs events.
    """

    def __init__(
        self,
        hook: RoughyHook,
        *,
        owner: ClaimOwner,
        ledger: Ledger,
        dag_id: str,
        run_id: str,
        project_id: str,
        language: str | None = None,
        by_content: bool = False,
        parallel: int = 4,
        log: Log = _log,
    ) -> None:
        self._hook = hook
        self._owner = owner
        self._ledger = ledger
        self._dag_id = dag_id
        self._run_id = run_id
        self.project_id = project_id
        self.language = language
        #: Whether recordings are identified by their content.
        self.by_content = by_content
        self._parallel = parallel
        self._log = log
        self._recorder = Recorder(owner, ledger)
        self._transfers = Transfers(hook, self._recorder, project_id=project_id, parallel=parallel, log=log)
        #: How many files the ledger has, by state.
        self.known: Counter[str] = Counter()
        #: How many planned recordings are of unknown length.
        self.unknown = 0
        #: The balance; ``None`` without prices.
        self.balance: int | None = None
        #: Credits that earlier manifests of this run have spent.
        self.spent = 0
        #: How many lines were written, by status; bytes and credits of the planned ones.
        self.lines: Counter[str] = Counter()
        self.size_bytes = self.credits = 0
        #: The recordings that were planned before and are planned again.
        self._kept: set[str] = set()
        self._seen: set[bytes] = set()
        #: The digests of the locations of all files that were listed.
        self._listed: set[bytes] = set()
        self._to_remember: set[str] = set()

    def plan(
        self,
        files: list[SourceFile],
        writer: ManifestWriter,
        *,
        earlier: EarlierPlan,
        priced: bool,
        max_credits: int | None = None,
        credits_if_unknown: int | None = None,
        stable_for: float = 0.0,
        dry_run: bool = False,
    ) -> None:
        """Write a line for each file that the ledger does not have.

        :param files: The files, the oldest first. They are removed from the list, which saves memory.
        :param writer: Takes the lines.
        :param earlier: What an earlier manifest of this run has planned.
        :param priced: Whether to read the length of each recording.
        :param max_credits: The most credits that the run may cost; ``None`` for no limit.
        :param credits_if_unknown: The credits to count for a recording of unknown length.
        :param stable_for: Defer files that were changed less than so many seconds ago.
        :param dry_run: Whether to write nothing to the ledger.
        :raises RoughyError: If the ledger or the balance cannot be read.
        """
        ledger = self._ledger
        snapshot = ledger.snapshot()
        legacy = ledger.legacy(snapshot)
        by_content = self.by_content = self.by_content or ledger.identifies_by_content()
        contents = ledger.contents() if by_content else {}
        if by_content and not dry_run:
            ledger.identify_by_content()
        self.spent = earlier.spend(snapshot)
        if priced:
            self.balance = self._hook.get_credit_balance()
            for key, cost in self._costs(earlier.unpriced & snapshot.done):
                earlier.pay(key, cost)
            self.spent = earlier.spent
        budget = Budget.of(
            max_credits, spent=self.spent, reserved=sum(earlier.credits.values()), balance=self.balance or 0
        )
        known = snapshot.done | snapshot.open.keys() | contents.keys()
        files.reverse()
        while files:
            chunk = [files.pop() for _ in range(min(_CHUNK, len(files)))]
            items = self._items(chunk, writer)
            use_names_of(known, items)
            if by_content:
                self._identify(items, snapshot, legacy, contents, stable_for)
                self._rename(items, earlier)
            part = part_of(snapshot, items)
            versions = read_versions(ledger, part.open)
            standings = compare(ledger, self._owner, items, part, legacy, versions, is_retry=False)
            todo = [item for standing in standings for item in self._decide(standing, writer, earlier, stable_for)]
            if priced:
                new = [item for item in todo if item.credits is None and item.key not in earlier.credits]
                self.unknown += price(new, credits_if_unknown=credits_if_unknown, parallel=self._parallel)
            for item in todo:
                self._add(item, writer, earlier, budget if priced else Budget(None))
        if max_credits is not None and (unknown := earlier.unpriced & snapshot.open.keys()):
            raise RoughyConfigurationError(
                "`max_credits` cannot be kept: an earlier plan of this run, without prices, has planned "
                f"{counted(len(unknown), 'recording')} that may yet be charged. Plan again when they are done, or in a "
                "new run. Nothing was planned"
            )
        self._keep_done(earlier, snapshot, writer)
        # A task may be uploading what only the earlier manifest names, such as a file that was moved meanwhile. Nothing
        # else would count that in the next plan of this run.
        self.spent += sum(credits for key, credits in earlier.credits.items() if key not in self._kept)

    def _rename(self, items: Mapping[str, UploadItem], earlier: EarlierPlan) -> None:
        """Move the credits that an earlier manifest planned under a file's location to the key of its content."""
        for key, item in items.items():
            assert item.file is not None
            before = item.file.identity(project_id=self.project_id, language=self.language).key
            if before in earlier.credits and key not in earlier.credits:
                earlier.credits[key] = earlier.credits.pop(before)
            if before in earlier.planned:
                earlier.planned.add(key)

    def _keep_done(self, earlier: EarlierPlan, snapshot: Snapshot, writer: ManifestWriter) -> None:
        """Keep the lines of recordings that are done and whose files were moved away, so that the report has them."""
        kept = earlier.planned & snapshot.done
        for planned in earlier.lines() if kept else ():
            key = bytes.fromhex(planned.key)
            if planned.key in kept and key not in self._seen and location_digest(planned.uri) not in self._listed:
                self._seen.add(key)
                self.lines[DONE] += 1
                writer.add(replace(planned, status=DONE, credits=earlier.paid.get(planned.key)))

    def remember_rejected(self, writer: ManifestWriter) -> None:
        """Store in the ledger which files cannot be uploaded, once the manifest names them.

        :param writer: Has their lines.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """

        def remember(planned: Planned) -> None:
            name = planned.uri if planned.name is None else planned.name
            identity = {
                "uri": name,
                "size": planned.size_bytes,
                "version": planned.version,
                "project_id": self.project_id,
                "language": self.language,
                "storage": planned.storage,
            }
            result = Result(planned.key, planned.uri, identity, str(self._owner), "rejected", reason=planned.reason)
            self._ledger.create_result(result)

        if self._to_remember:
            rejected = (planned for planned in writer.planned() if planned.key in self._to_remember)
            for _ in self._ledger.each(remember, rejected):
                pass

    def _costs(self, keys: Collection[str]) -> Iterator[tuple[str, int]]:
        """Yield the keys of recordings that are done, and what each has cost by its result."""

        def cost(key: str) -> int:
            try:
                result = self._ledger.find_result(key)
            except RoughyLedgerEntryError:
                return 0
            return result.credits or 0 if result is not None else 0

        return zip(keys, self._ledger.each(cost, keys), strict=True)

    # ---- One chunk

    def _items(self, files: list[SourceFile], writer: ManifestWriter) -> dict[str, UploadItem]:
        items: dict[str, UploadItem] = {}
        for file in files:
            self._listed.add(location_digest(file.uri))
            identity = file.identity(project_id=self.project_id, language=self.language)
            item = UploadItem(file, identity.key, identity.to_dict(), file.uri, log=self._log)
            if file.problem in (Problem.PASSING, Problem.UNREADABLE):
                # The ledger gets no result of these: a later plan lists them again.
                self._write(item, writer, DEFERRED if file.problem is Problem.PASSING else REJECTED, file.reason)
            else:
                items[item.key] = item
        return items

    def _identify(
        self,
        items: dict[str, UploadItem],
        snapshot: Snapshot,
        legacy: LegacyIndex,
        contents: Mapping[str, str],
        stable_for: float,
    ) -> None:
        def may_read(item: UploadItem) -> bool:
            return why_not(item, stable_for) is None and not has_legacy(item, legacy)

        by_location = snapshot.done | snapshot.open.keys()
        copies = identify_all(self._ledger, items, by_location, contents, may_read, self._transfers)
        for key in [key for key in items if bytes.fromhex(key) in self._seen]:
            copies.append(items.pop(key).name)
        self.known["duplicate"] += len(copies)
        if self._recorder.fatal is not None:
            raise self._recorder.fatal

    def _decide(
        self, standing: Standing, writer: ManifestWriter, earlier: EarlierPlan, stable_for: float
    ) -> Iterator[UploadItem]:
        """Yield a recording that is to be uploaded, resumed or reported; write the line of one that is left out."""
        item, version = standing.item, standing.version
        if item is None:
            return
        if standing.error is not None:
            self._write(item, writer, DEFERRED, str(standing.error))
        elif standing.action is Action.UPLOAD:
            problem = why_not(item, stable_for)
            if problem is None:
                yield item
                return
            status = REJECTED if problem[0] is Status.REJECTED else DEFERRED
            if status == REJECTED:
                self._to_remember.add(item.key)
            self._write(item, writer, status, problem[1])
        elif version is not None and (standing.action is not Action.LEAVE_OUT or self._is_of_this_run(version.owner)):
            item.version, item.mine = version, self._is_of_this_run(version.owner)
            sent = version.state in (Progress.SENT, Progress.PENDING_PAYMENT)
            if (standing.state or (sent and not item.mine)) and item.key not in earlier.credits:
                # Roughy has its bytes: it is paid for, or another run pays for it.
                item.credits = 0
            yield item
        elif standing.state == "rejected" and item.key in earlier.rejected:
            self._write(item, writer, REJECTED, earlier.rejected[item.key])
        elif standing.state and item.key in earlier.planned:
            item.credits = earlier.paid.get(item.key)
            self._write(item, writer, DONE)
        elif standing.state:
            self.known[standing.state] += 1
        elif version is not None and version.asset_id is not None and version.state != Progress.UPLOADING:
            self.known[version.state] += 1
        elif version is not None:
            self._write(item, writer, DEFERRED, self._ledger.describe_claim(version.owner))

    def _is_of_this_run(self, owner: ClaimOwner) -> bool:
        """Return whether a task of this run of the DAG has a claim, such as a shard of an earlier manifest."""
        return owner.task_key.startswith(f"{self._dag_id}.") and owner.run_key.partition("[")[0] == self._run_id

    def _add(self, item: UploadItem, writer: ManifestWriter, earlier: EarlierPlan, budget: Budget) -> None:
        if item.key in earlier.credits:
            # The budget was reduced by these credits when it was created.
            item.credits = earlier.credits[item.key] if self.balance is not None else None
            self._kept.add(item.key)
        elif (problem := budget.take(item.credits or 0)) is not None:
            self._write(item, writer, DEFERRED, problem)
            return
        earlier.unpriced.discard(item.key)
        self._write(item, writer, PLANNED)

    def _write(self, item: UploadItem, writer: ManifestWriter, status: str, reason: str | None = None) -> None:
        key = bytes.fromhex(item.key)
        if key in self._seen:
            return
        self._seen.add(key)
        file, identity = item.file, item.identity
        assert file is not None
        self.lines[status] += 1
        if status == PLANNED:
            self.size_bytes += item.size
            self.credits += item.credits or 0
        writer.add(
            Planned(
                item.key,
                status,
                item.name,
                item.size,
                identity["version"],
                item.credits,
                item.seconds,
                reason,
                None if identity["uri"] == item.name else identity["uri"],
                identity["storage"],
                file.versions,
                quoted_path(file.path),
                item.version is not None,
            )
        )


def part_of(snapshot: Snapshot, keys: Collection[str]) -> Snapshot:
    """Return the part of a snapshot that concerns some recordings.

    :param snapshot: The names of the ledger's objects.
    :param keys: The recordings.
    """
    latest = {key: snapshot.open[key] for key in keys if key in snapshot.open}
    return Snapshot(snapshot.done, latest, snapshot.problems, snapshot.legacy)
