"""The operator that ingests a batch of recordings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_roughy.api import language_code
from airflow_provider_roughy.arguments import as_seconds, check_bool, check_choice, check_credits, check_parallel
from airflow_provider_roughy.compat import AirflowTaskTimeout, conf
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyIngestError,
    RoughyIngestFailedError,
    RoughyProtocolError,
    RoughyTimeoutError,
)
from airflow_provider_roughy.ingest.again import names_of
from airflow_provider_roughy.ingest.batch import Batch
from airflow_provider_roughy.ingest.discover import MEDIA, list_of
from airflow_provider_roughy.ingest.manifest import is_manifest
from airflow_provider_roughy.ingest.result import BatchResults, RecordingResult, Status
from airflow_provider_roughy.ingest.upload import FORGET_IMPORT
from airflow_provider_roughy.ledger import ClaimOwner, Ledger
from airflow_provider_roughy.lifecycle import ASSET, batch_from_event, end_unpaid
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.observability import lineage
from airflow_provider_roughy.observability.links import report_links
from airflow_provider_roughy.observability.openlineage import RunFacts
from airflow_provider_roughy.observability.outlets import Product, announce, ids_by_outcome
from airflow_provider_roughy.operators.ingest_arguments import (
    check_shard,
    find_recordings,
    ledger_outside,
    max_credits_of,
)
from airflow_provider_roughy.operators.interruptible import InterruptibleOperator
from airflow_provider_roughy.operators.reporting import TaskReport, error_text, log_table
from airflow_provider_roughy.operators.waiting import MAX_IDS, WaitingOperator
from airflow_provider_roughy.transfer.storage import asset_uri
from airflow_provider_roughy.transfer.throttle import MIN_BYTES_A_SECOND

if TYPE_CHECKING:
    import os

    from airflow_provider_roughy.compat import Context
    from airflow_provider_roughy.ingest.trees import SourceLocation
    from airflow_provider_roughy.operators.shards import ShardTask

#: Statuses of recordings that have an asset.
_WITH_ASSETS = (Status.READY, Status.PENDING_PAYMENT, Status.FAILED)


class RoughyIngestOperator(InterruptibleOperator, WaitingOperator):
    """Uploads the new recordings of a folder, a prefix, a glob or a list, and waits until Roughy has prepared them.

    One task ingests a whole batch: it runs ``parallel`` uploads at a time over one connection, then waits for all of
    them, with ``deferrable=True`` in the triggerer. An error in one recording does not affect the rest. An error that
    affects all of them (rejected key, no credits, Roughy down) stops the batch.

    **With a ledger, each recording is uploaded and paid for once.** The ledger is a folder of small JSON objects, local
    or in any storage that Airflow knows. It identifies a recording by its real path or URI, its size and version
    (content hash, ETag or modification time), the project and the language, however a DAG spells them. A retry, a
    cleared task, a task on another worker after a kill, and two live tries of one run upload only what is missing, on
    every version of Airflow. Two DAGs may share a ledger. A run leaves out recordings that another active run holds. It
    resumes those of a run that has ended: at once, or after a crash ten minutes after that run last renewed its lease.
    Each run reports unpaid recordings of earlier runs until they are ready or gone. The ledger must not be in the
    source.
    Without a ledger, a retry resumes the uploads of the try before it on Airflow 3.3 and later, and starts from the
    beginning on earlier versions; the next run uploads everything again.

    The result is the list of assets that are ready. Map the next task over it::

        ingest = RoughyIngestOperator(task_id="ingest", source="/data/recordings", ledger="/data/roughy-ledger")
        RoughyCutOperator.partial(task_id="cut").expand(asset_id=ingest.output)

    With ``map_index_template="{{ ti.xcom_pull(task_ids='ingest', key='names')[ti.map_index] }}"``, Airflow's grid shows
    the mapped tasks by their files.

    XComs have the other recordings, such as ``ingest.output["failed"]``, also if the task fails:

    ==================== ===============================================================================================
    ``ready``            asset ids, as the result, also of recordings of earlier runs that have been paid for since
    ``pending_payment``  asset ids that the credits do not cover yet, also those of earlier runs
    ``failed``           the reason, by asset id: Roughy could not prepare it, or it is gone
    ``rejected``         the reason, by file: neither audio nor video, too small, unreadable, archived
    ``deferred``         the reason, by file: left to a later run (``max_credits``, ``stable_for``, no credits, another
                         run is uploading it)
    ``interrupted``      the reason, by file: an error that a retry or a later run may fix, or ``timeout`` was over
    ``already_ingested`` how many files other runs have ingested or sent, by their state in the ledger, and how many
                         have the same bytes as another file (``duplicate``)
    ``sources``          the file of each asset id
    ``names``            a short name of each file of the result, in the same order: its own, with as many of its
                         folders as distinguish it from the others
    ==================== ===============================================================================================

    ``summary`` is a text for notifiers, of at most 1,500 characters, and ``report`` the folder of the report.

    ``refused``, ``postponed``, ``unfinished`` and ``known`` are the names that 0.2 gave to ``rejected``, ``deferred``,
    ``interrupted`` and the total of ``already_ingested``. They are still pushed, and will be removed in 0.5
    at the earliest.

    A recording that failed or was rejected fails the run that found it, and counts as already ingested for later runs.
    A changed file is a new recording.

    With ``outlets=[AssetAlias(...)]`` a task that succeeds announces each asset that is ready, up to 100; an outlet
    that is a plain ``Asset`` makes one event of the batch.

    **With a manifest of** :class:`RoughyPlanIngestOperator` **as** ``source``, several tasks share a large archive::

        plan = RoughyPlanIngestOperator(task_id="plan", source="s3://archive/", ledger=…, manifest=…, shards=8)
        ingest = RoughyIngestOperator.partial(task_id="ingest", source=plan.output).expand(shard=list(range(8)))

    Each uploads its own part, and then helps the others. It uploads only what is planned, in the project and with the
    ledger of the plan. Each shard writes a part of the report, by default beside the manifest
    (``plan-results/results-shard-0000-of-0008.jsonl``). Its result is the URI of that part; XComs have ``report``,
    ``summary`` and ``counts`` only, however many files there are. ``read_report`` of the folder has one result of
    each recording. Tasks of one run that are mapped over several manifests may share a folder of the report.

    :param source: A folder, a prefix such as ``s3://bucket/incoming/``, a glob, a file, an ``ObjectStoragePath``, or a
        list of them; or a manifest, whose name ends with ``.jsonl``. A source that is missing or unreadable fails the
        task, with or without a wildcard. A file that several links or sources lead to is one recording. (templated)
    :param pattern: Which files of a folder are taken, by their names: a glob or a list of globs. By default audio and
        video. Names that begin with a dot are left out. (templated)
    :param recursive: Whether to ingest subfolders, too. Links to folders are not followed.
    :param source_conn_id: The Airflow connection of the source's storage. (templated)
    :param ledger: The folder of the ledger: an absolute path or a URI. The folder that it lies in has to exist.
        (templated)
    :param ledger_conn_id: The Airflow connection of the ledger's storage. (templated)
    :param report: The folder of the report, an absolute path or a URI, such as ``s3://reports/{{ ds }}/``:
        ``results.jsonl`` for programs and ``index.html`` for people, also if the task fails. Each run and each task
        needs its own folder. (templated)
    :param report_conn_id: The Airflow connection of the report's storage. (templated)
    :param identity: What makes a file the same recording, besides project and language: ``"location"``, its path or
        URI, size and version, or ``"content"``, the hash of its bytes. With ``"content"`` a file that was moved,
        renamed, copied or touched is not paid for again. Each file is read once more, before its upload, and not again
        while its location, size and version stay the same. From the first such run on, all tasks that use the ledger
        identify recordings by content. Recordings that the ledger already has by location keep their location-based
        identity.
    :param project_id: The project of the new assets; by default the one in the connection's extra. (templated)
    :param language: The language spoken, two letters of ISO 639-1; by default Roughy detects it. (templated)
    :param parallel: How many uploads at once, 1 to 64.
    :param max_credits: The most credits that this run may cost over all its tries, and never more than the balance. The
        length of each recording is read from its own headers (extra ``probe``). Recordings that do not fit are
        deferred; the oldest go first. ``None`` uploads everything: recordings that the balance does not cover become
        ``pending_payment``. (templated)
    :param credits_if_unknown: The credits to count for a recording of unknown length, such as raw AAC or an MP3
        without a Xing or VBRI header. By default the most that its size can hold (8 kbit/s, one credit per 60 KB),
        so that ``max_credits`` is never exceeded.
    :param dry_run: Whether only to report which files would be uploaded, and for how many credits. Nothing is created
        at Roughy.
    :param stable_for: Seconds, or a ``timedelta``: new files that were changed more recently are deferred, as they may
        still be written to.
    :param on_empty: What to do if there is no file at all: ``"return"`` an empty list, ``"skip"`` or ``"fail"``.
    :param on_pending_payment: What to do about assets that the credits do not cover, and files that were not uploaded
        because none were left: ``"fail"`` at the end, ``"skip"``, ``"return"`` them in ``pending_payment`` and
        ``deferred``, or ``"wait"`` until the credits are topped up, for those that are uploaded. Unpaid assets of
        earlier runs are reported and do not fail this one, until Roughy removes them after 30 days: they are
        ``failed`` then.
    :param on_failed: What to do at the end if recordings failed, were rejected or interrupted: ``"fail"``, with a retry
        only if one may fix any of them, or ``"return"``.
    :param retry: Recordings that are done and that this run ingests again, by their key in the ledger, their name, path
        or URI; Roughy charges each again. They must be in the source. All tries of the run ingest each once more, and
        later runs skip them as before. A name that matches no recording fails the task before anything is created; one
        that a template rendered to nothing is left out. So a parameter of a run can name them:
        ``retry="{{ params.retry }}"``. (templated)
    :param bandwidth_limit: The bytes a second that all uploads of this task together may send, at least 65,536;
        ``None`` for no limit. Each shard of a manifest has a limit of its own.
    :param shard: Which part of a manifest this task uploads, from 0. Map over it:
        ``expand(shard=list(range(8)))``. Without it, the task uploads all of the manifest.
    :param shards: How many tasks share the manifest; by default what it was planned for.
    :param poll_interval: Seconds, or a ``timedelta``, between two polls.
    :param timeout: Seconds, or a ``timedelta``, to wait after the uploads; by default Airflow's
        ``[sensors] default_timeout``. Recordings that are not done by then are ``interrupted``, without a retry.
        ``execution_timeout`` bounds uploads and wait together.
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer, which takes no worker slot.
    :raises RoughyIngestFailedError: If recordings failed, were rejected or are not paid for, and no retry would help.
    :raises RoughyIngestError: If a retry may help some of them.
    :raises RoughyUnusableSourceError: If the source is missing or unreadable.
    :raises RoughyUnusableLedgerError: If the ledger cannot be used. Nothing was created.
    """

    operator_extra_links = report_links()
    template_fields: Sequence[str] = (
        "source",
        "pattern",
        "source_conn_id",
        "ledger",
        "ledger_conn_id",
        "report",
        "report_conn_id",
        "project_id",
        "language",
        "max_credits",
        "retry",
        "roughy_conn_id",
    )

    def __init__(
        self,
        *,
        source: SourceLocation | Sequence[SourceLocation],
        pattern: str | Sequence[str] = MEDIA,
        recursive: bool = False,
        source_conn_id: str | None = None,
        ledger: str | os.PathLike[str] | None = None,
        ledger_conn_id: str | None = None,
        report: str | os.PathLike[str] | None = None,
        report_conn_id: str | None = None,
        identity: Literal["location", "content"] = "location",
        project_id: str | None = None,
        language: str | None = None,
        parallel: int = 4,
        max_credits: int | str | None = None,
        credits_if_unknown: int | None = None,
        dry_run: bool = False,
        stable_for: float | timedelta = 0,
        on_empty: Literal["return", "skip", "fail"] = "return",
        on_failed: Literal["fail", "return"] = "fail",
        retry: str | Sequence[str] | None = None,
        bandwidth_limit: int | None = None,
        shard: int | None = None,
        shards: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("on_empty", on_empty, ("return", "skip", "fail"))
        check_choice("on_failed", on_failed, ("fail", "return"))
        check_choice("identity", identity, ("location", "content"))
        if identity == "content" and ledger is None:
            raise ValueError("identity='content' needs a `ledger`, which stores the contents")
        if retry and ledger is None:
            raise ValueError("`retry` needs a `ledger`, which has the recordings that are done")
        check_parallel(parallel)
        check_credits("credits_if_unknown", credits_if_unknown)
        check_shard(shard, shards)
        if bandwidth_limit is not None and (
            isinstance(bandwidth_limit, bool)
            or not isinstance(bandwidth_limit, int)
            or bandwidth_limit < MIN_BYTES_A_SECOND
        ):
            raise ValueError(
                f"bandwidth_limit must be a whole number of bytes a second, at least {MIN_BYTES_A_SECOND:,}, not "
                f"{bandwidth_limit!r}"
            )
        self.source = source
        self.pattern = pattern
        self.recursive = check_bool("recursive", recursive)
        self.source_conn_id = source_conn_id
        self.ledger = ledger
        self.ledger_conn_id = ledger_conn_id
        self.report = report
        self.report_conn_id = report_conn_id
        self.identity = identity
        self.project_id = project_id
        self.language = language
        self.parallel = parallel
        self.max_credits = max_credits
        self.credits_if_unknown = credits_if_unknown
        self._dry_run = check_bool("dry_run", dry_run)  # BaseOperator has a method of that name.
        self.stable_for = as_seconds("stable_for", stable_for) if stable_for else 0.0
        self.on_empty = on_empty
        self.on_failed = on_failed
        self.retry = retry
        self.bandwidth_limit = bandwidth_limit
        self.shard = shard
        self.shards = shards
        #: The batch under way.
        self._running: Batch | None = None
        #: Whether this try has reported its results.
        self._is_reported = False

    def execute(self, context: Context) -> list[str] | str:
        """Upload the new recordings, and wait for them.

        :returns: The assets that are ready; with a manifest, the URI of the results.
        """
        started = time.time()
        if is_manifest(self.source):
            return self._shard_task(context).execute()
        if self.shard is not None:
            raise RoughyConfigurationError(
                f"`shard` is given, and `source` is no manifest: {str(self.source)[:200]!r}. Give the output of "
                "RoughyPlanIngestOperator, whose name ends with .jsonl"
            )
        if any(map(is_manifest, list_of(self.source))):
            raise RoughyConfigurationError(
                f"`source` is a list with a manifest: {str(self.source)[:200]!r}. Give one manifest; of several, map "
                "the task over them"
            )
        max_credits = max_credits_of(self.max_credits, is_priced=self._dry_run)
        batch = self._batch(context)
        report = self._task_report(context)
        with self._interrupt, self.hook, self._reported(context, batch, report):
            report.begin()
            found = find_recordings(
                self.source,
                pattern=self.pattern,
                recursive=self.recursive,
                conn_id=self.source_conn_id,
                ledger=batch.ledger,
                on_empty=self.on_empty,
            )
            try:
                with batch.running():
                    self._running = batch
                    batch.take_stock(found, stable_for=self.stable_for, dry_run=self._dry_run)
                    if max_credits is not None or self._dry_run:
                        batch.plan(max_credits=max_credits, credits_if_unknown=self.credits_if_unknown)
                    if self._dry_run:
                        batch.defer_all("dry run")
                    batch.upload()
                    return self._wait_and_report(context, batch, report, self.deadline(started))
            finally:
                self._running = None

    def _shard_task(self, context: Context) -> ShardTask:
        from airflow_provider_roughy.operators.shards import ShardTask

        return ShardTask(self, context)

    def _batch(self, context: Context) -> Batch:
        return Batch(
            self.hook,
            owner=ClaimOwner.of(context["ti"]),
            project_id=self.hook.get_project_id(self.project_id),
            language=language_code(self.language) if self.language else None,
            on_pending_payment=self.on_pending_payment,
            ledger=self._ledger(),
            store=context.get("task_state_store"),
            parallel=self.parallel,
            by_content=self.identity == "content",
            retry=names_of(self.retry),
            bandwidth_limit=self.bandwidth_limit,
            log=self.log,
        )

    def _ledger(self) -> Ledger | None:
        if self.ledger is None:
            self.log.warning("No `ledger` is given: the next run uploads and pays for all of this again")
            return None
        return ledger_outside(self.ledger, self.ledger_conn_id, self.source)

    def _task_report(self, context: Context) -> TaskReport:
        return TaskReport(context, location=self.report, conn_id=self.report_conn_id, hook=self.hook, log=self.log)

    @contextmanager
    def _reported(self, context: Context, batch: Batch, report: TaskReport) -> Iterator[None]:
        """Report the results so far if the body raises an error before it has reported them."""
        try:
            yield
        except (Exception, AirflowTaskTimeout) as error:
            if not batch.is_reported:
                self._report(context, batch, report, error=error)
            raise

    def _wait_and_report(self, context: Context, batch: Batch, report: TaskReport, deadline: float) -> list[str]:
        if batch.waiting and self.deferrable:
            self._defer_wait(context, batch, report, deadline)
        if batch.waiting:
            batch.settle(self.wait_on_worker(batch.waiting, deadline))
        not_written = self._report(context, batch, report)
        return self._end(context, batch, not_written)

    def _defer_wait(self, context: Context, batch: Batch, report: TaskReport, deadline: float) -> None:
        before = {**batch.to_dict(), "deadline": deadline, "report_facts": report.facts.to_dict()}
        self.save_state(context, before)
        lease = batch.extend_lease()
        self.defer_wait(batch.waiting[:MAX_IDS], deadline, lease)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> list[str] | str:
        """Continue after the wait in the triggerer.

        :returns: The assets that are ready; with a manifest, the URI of the results.
        """
        before = self.saved_state(context) or {}
        if "header" in before:
            return self._shard_task(context).resume(before, event)
        if is_manifest(self.source):
            # Someone has deleted the XCom. What is uploaded is in the ledger.
            self.log.warning("The state from before the wait is gone; starting again")
            return self._shard_task(context).execute()
        verdicts = batch_from_event(event)
        with self.hook:
            batch = self._batch(context)
            report = self._task_report(context)
            report.resume(before.get("report_facts"))
            with self._reported(context, batch, report), batch.running():
                batch.resume(before, [verdict.id for verdict in verdicts])
                batch.settle(verdicts)
                return self._wait_and_report(context, batch, report, before.get("deadline", 0.0))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the wait in the triggerer; report what is known if the wait brought no verdicts."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (RoughyTimeoutError, RoughyProtocolError) as error:
            before = {} if self._is_reported else self.saved_state(context) or {}
            if "header" in before:
                self._shard_task(context).resume(before, error=error)
            elif not self._is_reported:
                results, waiting = BatchResults.from_dict(before), before.get("waiting", {})
                for id, item in waiting.items() if isinstance(waiting, dict) else ():
                    lost = RecordingResult(item["name"], Status.INTERRUPTED, asset_id=id, reason=str(error))
                    results.add(lost)
                report = self._task_report(context)
                report.resume(before.get("report_facts"))
                with self.hook:
                    report.write(results.results, error=error, already_ingested=dict(results.already_ingested))
            raise

    def stop_running(self) -> None:
        """End the uploads under way. The next try resumes them, if it can."""
        if self._running is not None:
            self._running.stop()

    # ---- The end

    def _report(
        self, context: Context, batch: Batch, report: TaskReport, *, error: BaseException | None = None
    ) -> Exception | None:
        """Report the result of each recording in the log, in XComs and in the report, and record that in the ledger.

        :param error: The error that has ended the batch.
        :returns: The error because of which the report could not be written.
        """
        self._is_reported = True
        batch.leave_waiting()
        results = batch.results
        results.record_metrics()
        new = [result for result in results.of(Status.READY) if not result.repeated]
        self.run_facts = RunFacts(
            results.numbers(),
            credits=sum(result.credits or 0 for result in new),
            media_seconds=sum(result.seconds or 0.0 for result in new),
            request_ids=[result.request_id for result in results.results if result.request_id],
        )
        # An error before the first result needs no summary.
        if error is None or results.numbers():
            self.log.info("%s", results.summary())
        log_table(self.log, list(results.table()))
        balance = batch.log_unpaid()
        for name, value in results.xcoms().items():
            context["ti"].xcom_push(name, value)
        if balance is None and error is None:
            balance = report.balance()
        not_written = report.write(
            results.results,
            error=error or batch.fatal,
            already_ingested=dict(results.already_ingested),
            balance_after=balance,
            advice=_how_to_ingest_again(batch),
        )
        batch.finish()
        return not_written

    def _end(self, context: Context, batch: Batch, not_written: Exception | None) -> list[str]:
        results, fatal = batch.results, batch.fatal
        self._report_lineage(results)
        lines = list(results.table(without=(Status.READY, Status.DEFERRED)))
        text = error_text(f"{results.summary()}:", lines)
        advice = _how_to_ingest_again(batch)
        if self.on_failed == "fail" and results.of(Status.FAILED, Status.REJECTED, Status.INTERRUPTED):
            again = any(result.retryable for result in results.results)
            text = "\n".join(filter(None, [text, advice]))
            raise (RoughyIngestError if again else RoughyIngestFailedError)(text, outcomes=results.xcoms())
        if advice:
            self.log.warning("%s", advice)
        unpaid = [result for result in results.of(Status.PENDING_PAYMENT) if not result.earlier]
        if unpaid or fatal:
            message = (
                f"The credits do not cover everything. {text}\nTop up at Roughy within 30 days: uploaded recordings "
                "then become ready automatically, and the next run reports them"
            )
            error = fatal or RoughyIngestFailedError(message, outcomes=results.xcoms())
            end_unpaid(self.on_pending_payment, error, why_skipped=message)
        # With a ledger, a retry uploads nothing again and writes the report.
        if not_written is not None and batch.ledger is not None:
            raise not_written
        self._announce(context, results)
        ready = results.ids(Status.READY)
        most = conf.getint("core", "max_map_length", fallback=1024)
        if len(ready) > most:
            self.log.warning(
                "The result has %s, and `[core] max_map_length` is %s: Airflow fails this task at its end if another "
                "one is mapped over the result. Raise that option; or plan with RoughyPlanIngestOperator and ingest in "
                "shards, whose results are objects",
                counted(len(ready), "asset id"),
                f"{most:,}",
            )
        return ready

    def _report_lineage(self, results: BatchResults) -> None:
        there = [result for result in results.of(Status.READY, Status.PENDING_PAYMENT) if result.asset_id]
        lineage.report(
            self.hook,
            read=(asset_uri(result.source) for result in there),
            written=(lineage.resource_uri(ASSET.name, result.asset_id or "") for result in there),
            project_id=self.hook.get_project_id(self.project_id),
        )

    def _announce(self, context: Context, results: BatchResults) -> None:
        project_id = self.hook.get_project_id(self.project_id)
        announce(
            self,
            context,
            (
                Product(
                    lineage.resource_uri(ASSET.name, result.asset_id),
                    {"asset_id": result.asset_id, "project_id": project_id, "source": result.source},
                )
                for result in results.of(Status.READY)
                if result.asset_id
            ),
            {
                "project_id": project_id,
                "counts": results.numbers(),
                **ids_by_outcome(
                    {
                        status.value: results.ids(status)
                        for status in (Status.READY, Status.PENDING_PAYMENT, Status.FAILED)
                    }
                ),
            },
        )


def _how_to_ingest_again(batch: Batch) -> str | None:
    """Say how to ingest recordings again that failed or were rejected; ``None`` if no later run would skip them."""
    ended = batch.results.of(Status.FAILED, Status.REJECTED)
    if batch.ledger is None or not ended:
        return None
    text = "Later runs skip files that failed or were rejected, and a cleared task reports them again"
    if keys := [result.key for result in ended if result.key]:
        text += (
            ". To ingest one again, replace the file; name it in `retry` of another run; or forget it by the key in "
            f"its line, and clear the task: {FORGET_IMPORT}; {batch.ledger.forget_call(keys[0])}"
        )
    return text
