"""How :class:`~airflow_provider_roughy.operators.RoughyIngestOperator` runs as one shard of a manifest."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import language_code
from airflow_provider_roughy.compat import AirflowSkipException, AirflowTaskTimeout
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyConfigurationError,
    RoughyIngestError,
    RoughyIngestFailedError,
    RoughyUnusableSourceError,
    api_error,
)
from airflow_provider_roughy.ingest import manifest as manifests
from airflow_provider_roughy.ingest.identity import canonical_project
from airflow_provider_roughy.ingest.journal import ShardTotals
from airflow_provider_roughy.ingest.manifest import Header, Manifest
from airflow_provider_roughy.ingest.result import RecordingResult, Status, record_metrics
from airflow_provider_roughy.ingest.shard import Shard
from airflow_provider_roughy.ingest.upload import FORGET_IMPORT
from airflow_provider_roughy.instruments import FILES
from airflow_provider_roughy.ledger import ClaimOwner, Ledger
from airflow_provider_roughy.lifecycle import ASSET, batch_from_event, end_unpaid
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.observability import lineage
from airflow_provider_roughy.observability.links import report_url, show_report
from airflow_provider_roughy.observability.openlineage import RunFacts
from airflow_provider_roughy.observability.outlets import Product, announce
from airflow_provider_roughy.observability.report import check_location, page_uri, write_report
from airflow_provider_roughy.operators.reporting import balance_of, error_text, facts_of, log_table
from airflow_provider_roughy.operators.waiting import MAX_IDS
from airflow_provider_roughy.transfer.storage import as_text, asset_uri, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_roughy.compat import Context
    from airflow_provider_roughy.operators.ingest import RoughyIngestOperator


class ShardTask:
    """One try of a task that ingests a shard.

    :param operator: The operator, whose templates are rendered.
    :param context: The context of the task.
    """

    def __init__(self, operator: RoughyIngestOperator, context: Context) -> None:
        self._operator = operator
        self._context = context
        self._log = operator.log
        self._location = str(operator.source)
        self._owner = ClaimOwner.of(context["ti"])
        self._facts = facts_of(context)
        self._shard: Shard
        #: The parts of what is waited for that are only in the ledger.
        self._unread: list[int] = []

    def execute(self) -> str:
        """Upload the shard's part of the manifest, help the others, and wait.

        :returns: The URI of the results.
        """
        operator = self._operator
        started = time.time()
        with (
            operator._interrupt,
            operator.hook,
            manifests.reading(self._location, conn_id=operator.source_conn_id) as manifest,
        ):
            self._check(manifest.header)
            self._report_folder()
            if manifest.header.dry_run:
                raise AirflowSkipException(
                    f"Manifest {manifest.uri} is a price list: it was planned with dry_run=True, and nothing of it is "
                    "uploaded"
                )
            shard = self._open(manifest)
            try:
                with self._reported(), shard.running():
                    operator._running = shard
                    shard.ingest()
                    return self._wait_and_report(operator.deadline(started), parts=self._keep_waiting())
            finally:
                operator._running = None

    def resume(
        self, before: dict[str, Any], event: dict[str, Any] | None = None, *, error: Exception | None = None
    ) -> str:
        """Continue after the wait in the triggerer.

        :param before: What was kept.
        :param event: The event of the trigger.
        :param error: Why there is none.
        :returns: The URI of the results.
        """
        part = before["part"]
        # The template may render to something else by now.
        self._location = before.get("location", self._location)
        self._unread = list(range(part, before["parts"] + 1))
        with self._operator.hook:
            shard = self._open(None, Header.decode(json.dumps(before["header"]).encode()))
            with self._reported(), shard.running():
                shard.journal.load()
                kept = shard.ledger.read_waiting(self._owner, 0)
                rows = kept.get("not_final", {})
                shard.journal.not_final = {key: RecordingResult.from_dict(row) for key, row in rows.items()}
                fatal = kept.get("fatal")
                shard.journal.fatal = api_error(**fatal) if fatal else None
                if error is not None:
                    raise error
                verdicts = batch_from_event(event)
                shard.restore(shard.ledger.read_waiting(self._owner, self._unread.pop(0)))
                shard.settle(verdicts)
                shard.journal.store(now=True)
                if (left := shard.waiting) and part < before["parts"]:
                    # The trigger has no verdict on them.
                    following = shard.ledger.read_waiting(self._owner, part + 1).get("waiting", {})
                    more = {"waiting": {**following, **shard.kept(left)["waiting"]}}
                    shard.ledger.write_waiting(self._owner, part + 1, more)
                shard.ledger.remove_waiting(self._owner, [part])
                return self._wait_and_report(before["deadline"], part=part + 1, parts=before["parts"])

    # ---- The manifest

    def _check(self, header: Header) -> None:
        operator = self._operator
        for name in ("max_credits", "stable_for", "retry", "_dry_run"):
            value = getattr(operator, name)
            if value or (name == "max_credits" and value is not None):
                raise RoughyConfigurationError(
                    f"`{name.strip('_')}` has no effect on a manifest: give it to RoughyPlanIngestOperator, which "
                    "decides what is uploaded"
                )
        ledger = operator.ledger
        if ledger is not None and Ledger(ledger).uri != Ledger(header.ledger).uri:
            raise RoughyConfigurationError(
                f"`ledger` is {Ledger(ledger).uri}, and the manifest was planned with {Ledger(header.ledger).uri}: "
                "leave `ledger` out, or plan again"
            )
        project = operator.hook.get_project_id(operator.project_id) if operator.project_id else header.project_id
        language = language_code(operator.language) if operator.language else header.language
        for name, given, planned in (
            ("project_id", canonical_project(project), canonical_project(header.project_id)),
            ("language", language, header.language),
        ):
            if given != planned:
                raise RoughyConfigurationError(
                    f"`{name}` is {given!r}, and the manifest was planned with {planned!r}: leave `{name}` out, or "
                    "plan again"
                )
        shard, shards = self._numbers(header)
        if not 0 <= shard < shards:
            raise RoughyConfigurationError(
                f"`shard` is {shard}, and there are {shards} `shards`: give 0 to {shards - 1}, such as by "
                f"expand(shard=list(range({shards})))"
            )

    def _numbers(self, header: Header) -> tuple[int, int]:
        operator = self._operator
        if operator.shard is None:
            return 0, 1
        return operator.shard, header.shards if operator.shards is None else operator.shards

    def _open(self, manifest: Manifest | None, header: Header | None = None) -> Shard:
        operator = self._operator
        header = manifest.header if manifest is not None else header
        assert header is not None
        self._header = header
        number, shards = self._numbers(header)
        self._name = f"{number} of {shards}"
        self._part = f"shard-{number:04}-of-{shards:04}"
        if operator.report is not None:
            # Tasks that are mapped over several manifests may share the folder.
            self._part = f"{hashlib.sha256(self._location.encode()).hexdigest()[:8]}-{self._part}"
        run_id = self._context["ti"].run_id
        # Of tasks that are mapped over something else, too, it is unknown which one has which shard: each treats the
        # others like other runs.
        is_numbered = shards > 1 and self._context["ti"].map_index == number
        indexes = range(shards) if is_numbered else ()
        siblings = [ClaimOwner(self._owner.task_key, f"{run_id}[{index}]") for index in indexes]
        self._shard = Shard(
            operator.hook,
            manifest=manifest,
            shard=number,
            shards=shards,
            siblings=siblings,
            source_conn_id=operator.source_conn_id,
            owner=self._owner,
            project_id=header.project_id,
            language=header.language,
            on_pending_payment=operator.on_pending_payment,
            ledger=Ledger(header.ledger, conn_id=operator.ledger_conn_id or header.ledger_conn_id, id=header.ledger_id),
            parallel=operator.parallel,
            bandwidth_limit=operator.bandwidth_limit,
            log=self._log,
        )
        return self._shard

    # ---- The wait

    def _keep_waiting(self) -> int:
        """Store what is waited for in the ledger, for the wait in the triggerer; return in how many parts."""
        shard = self._shard
        if not self._operator.deferrable:
            return 0
        waiting = shard.waiting
        parts = [waiting[start : start + MAX_IDS] for start in range(0, len(waiting), MAX_IDS)]
        for number, ids in enumerate(parts, start=1):
            shard.ledger.write_waiting(self._owner, number, shard.kept(ids))
        return len(parts)

    def _wait_and_report(self, deadline: float, *, part: int = 1, parts: int) -> str:
        shard, operator = self._shard, self._operator
        if part <= parts:
            fatal = shard.fatal.to_dict() if isinstance(shard.fatal, RoughyApiError) else None
            kept = {
                "not_final": {key: result.to_dict() for key, result in shard.journal.not_final.items()},
                "fatal": fatal,
            }
            shard.ledger.write_waiting(self._owner, 0, kept)
            before = {
                "header": json.loads(self._header.encode()),
                "location": self._location,
                "part": part,
                "parts": parts,
                "deadline": deadline,
            }
            operator.save_state(self._context, before)
            ids = list(shard.ledger.read_waiting(self._owner, part).get("waiting", ()))
            operator.defer_wait(ids, deadline, shard.extend_lease())
        if shard.waiting:
            shard.settle(operator.wait_on_worker(shard.waiting, deadline))
        uri, totals = self._report()
        self._end(uri, totals)
        return uri

    # ---- The end

    def _report(self, *, error: BaseException | None = None) -> tuple[str, ShardTotals]:
        """Write the part of this shard of the report, and log and push what is said of all its recordings.

        :param error: The error that has ended the shard.
        :returns: The URI of its results.
        """
        shard, ti = self._shard, self._context["ti"]
        self._operator._is_reported = True
        shard.leave_waiting()
        shard.finish()
        totals = ShardTotals(already_ingested=shard.results.already_ingested)
        folder, conn_id = self._report_folder()
        balance = balance_of(self._operator.hook, self._log)
        with self._manifest() as manifest:
            summary = write_report(
                folder,
                totals.counting(shard.rows(manifest, error)),
                facts=replace(
                    self._facts,
                    balance_after=balance,
                    error=None if error is None else as_text(str(error)),
                ),
                conn_id=conn_id,
                part=self._part,
            )
        uri = f"{folder}results-{self._part}.jsonl"
        self._log.info("Shard %s: %s. All results: %s", self._name, totals.summary(), as_text(uri))
        if unpaid := totals.counts[Status.PENDING_PAYMENT]:
            self._log.warning(
                "%s not paid for: %s needed, the balance is %s; Roughy keeps each for 30 days, and prepares it "
                "automatically once the credits are topped up",
                "1 recording is" if unpaid == 1 else f"{unpaid:,} recordings are",
                counted(totals.credits_needed, "credit"),
                "unknown" if balance is None else f"{balance:,}",
            )
        log_table(self._log, totals.lines)
        if totals.not_ready > len(totals.lines):
            self._log.info("%s more are in %s", f"{totals.not_ready - len(totals.lines):,}", uri)
        record_metrics(shard.journal.not_final.values())
        FILES.add(totals.already_ingested.total(), status="already_ingested")
        self._operator.run_facts = RunFacts(
            totals.numbers(), credits=totals.credits, media_seconds=totals.seconds, request_ids=totals.request_ids
        )
        ti.xcom_push("report", folder)
        if url := report_url(page_uri(folder, part=self._part)):
            show_report(ti, url)
        ti.xcom_push("summary", summary.text(report=url or as_text(without_secrets(folder))))
        ti.xcom_push("counts", {**totals.numbers(), "credits": totals.credits})
        shard.ledger.remove_waiting(self._owner, [0, *self._unread])
        return uri, totals

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Report all recordings of this shard if the body raises an error before it has reported them."""
        try:
            yield
        except (Exception, AirflowTaskTimeout) as error:
            if not self._shard.is_reported:
                try:
                    for part in self._unread:
                        self._shard.restore(self._shard.ledger.read_waiting(self._owner, part))
                    self._report(error=error)
                except Exception as err:  # The error that has ended it matters more, and is about to be raised.
                    self._log.warning("Reporting the results failed; a retry reports them: %s", err)
            raise

    @contextmanager
    def _manifest(self) -> Iterator[Manifest | None]:
        """Open the manifest again; yield ``None`` if another plan has replaced it, or it is gone or damaged."""
        with ExitStack() as stack:
            manifest, why = None, "Another plan has replaced it: give each run a manifest of its own"
            try:
                reading = manifests.reading(self._location, conn_id=self._operator.source_conn_id)
                manifest = stack.enter_context(reading)
            except RoughyUnusableSourceError as err:
                why = str(err)
            if manifest is None or manifest.header != self._header:
                self._log.warning(
                    "Manifest %s cannot be read again. The results have only the recordings that this shard has "
                    "claimed, and not the others of its part. %s",
                    as_text(without_secrets(self._location)),
                    why,
                )
                manifest = None
            yield manifest

    def _report_folder(self) -> tuple[str, str | None]:
        """Return the folder of the report, and the connection of its storage; by default beside the manifest.

        :raises RoughyTargetError: If no report can be written there.
        """
        operator = self._operator
        report: Any = operator.report
        if report is None:
            location = self._location.strip()[: -len(manifests.SUFFIX)] + "-results"
            return check_location(location, conn_id=operator.source_conn_id), operator.source_conn_id
        conn_id = operator.report_conn_id or getattr(report, "conn_id", None)
        return check_location(report, conn_id=conn_id), conn_id

    def _end(self, uri: str, totals: ShardTotals) -> None:
        operator, shard = self._operator, self._shard
        lineage.report(operator.hook, read=[asset_uri(self._location)], written=[asset_uri(uri)])
        numbers = totals.numbers()
        text = error_text(f"{totals.summary()}. All results: {uri}", totals.lines, total=totals.not_ready)
        ended = totals.counts[Status.FAILED] + totals.counts[Status.REJECTED]
        if ended and totals.ended_key:
            text += (
                "\nA new run skips files that failed or were rejected; a cleared run reports them again. To ingest one "
                "again, replace the file; or "
                f"forget it by its key, and plan again: {FORGET_IMPORT}; {shard.ledger.forget_call(totals.ended_key)}"
            )
        if operator.on_failed == "fail" and (ended or totals.counts[Status.INTERRUPTED]):
            raise (RoughyIngestError if totals.retryable else RoughyIngestFailedError)(text, outcomes=numbers)
        if ended:
            self._log.warning("%s", text)
        if totals.unpaid or shard.fatal:
            message = (
                f"The credits do not cover everything. {text}\nTop up at Roughy within 30 days: uploaded recordings "
                "then become ready automatically, and a new plan over the same ledger reports them"
            )
            error = shard.fatal or RoughyIngestFailedError(message, outcomes=numbers)
            end_unpaid(operator.on_pending_payment, error, why_skipped=message)
        if operator.outlets:
            self._announce(uri, totals)

    def _announce(self, uri: str, totals: ShardTotals) -> None:
        project_id = self._header.project_id

        def products() -> Iterator[Product]:
            for _, result in self._shard.journal.rows():
                if result.status == Status.READY and result.asset_id:
                    extra = {"asset_id": result.asset_id, "project_id": project_id, "source": result.source}
                    yield Product(lineage.resource_uri(ASSET.name, result.asset_id), extra)

        summary = {"project_id": project_id, "counts": totals.numbers(), "report": uri}
        announce(self._operator, self._context, products(), summary)
