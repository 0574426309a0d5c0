"""The operator that ingests a batch of recordings."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_roughy import lineage
from airflow_provider_roughy.api import language_code
from airflow_provider_roughy.compat import AirflowSkipException
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyError,
    RoughyIngestError,
    RoughyIngestFailedError,
    RoughyUnusableLedgerError,
    RoughyUnusableSourceError,
)
from airflow_provider_roughy.ingest import Batch, Report
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.lifecycle import (
    ASSET,
    as_seconds,
    batch_from_event,
    counted,
)
from airflow_provider_roughy.memory import Owner
from airflow_provider_roughy.operators.waiting import WaitingOperator
from airflow_provider_roughy.outlets import Product, announce, ids_by_outcome
from airflow_provider_roughy.polling import run_here, wait_for_batch
from airflow_provider_roughy.recordings import MEDIA, find_recordings
from airflow_provider_roughy.storage import asset_uri, without_secrets
from airflow_provider_roughy.triggers import RoughyBatchTrigger

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import Context

#: Seconds that a run which waits in the triggerer is believed to be alive; then others report what it waits for.
_LONGEST_WAIT = 24 * 3600.0
#: Lines of the table in one record of the log.
_LINES = 100
#: Lines of the table in an error.
_LINES_OF_ERROR = 10
#: Assets of one wait in the triggerer. Where Airflow's database is a MySQL, a row of a trigger holds some 1,200.
_MOST_IDS = 1000
#: Where a try leaves word for the part of it that comes after the wait.
_XCOM_KEY = "roughy_before_the_wait"


class RoughyIngestOperator(WaitingOperator):
    """Uploads the recordings of a folder, a prefix, a glob or a list that are new, and waits until they are ready.

    One task for a whole night: ``parallel`` uploads at a time over one connection, then one wait for all of them, with
    ``deferrable=True`` in the triggerer. A bad file does not sink the rest; trouble of all (a refused key, no credits,
    Roughy away) ends the uploads once.

    **With a ledger nothing is uploaded, or paid for, twice.** It is a folder of small JSON objects, local or in any
    storage that Airflow knows, which remembers each recording by where it is, its size and its version (ETag or
    modification time), the project and the language. A retry, a cleared task, a task on another worker after a kill:
    each takes up only what is missing, on every version of Airflow. Another run leaves alone what a run that is alive
    is about, takes over what a dead one has left (ten minutes after its last sign of life), and reports recordings that
    were not paid for in earlier nights once they are ready or failed. Two DAGs may share a ledger, and it must not be
    in the folder that is ingested. Two runs that overlap are kept apart where the storage can create an object only if
    it is absent: a file system, S3; elsewhere let ``max_active_runs`` be 1.
    Without a ledger a retry goes on with the uploads of the try before it on Airflow 3.3 and later, and starts anew
    before that; the next run uploads everything again.

    The result is the list of assets that are ready, so that the next task is mapped over it::

        ingest = RoughyIngestOperator(task_id="ingest", source="/data/recordings", ledger="/data/roughy-ledger")
        RoughyCutOperator.partial(task_id="cut").expand(asset_id=ingest.output)

    What else came of them is in XComs of their own, such as ``ingest.output["failed"]``, also if the task fails:

    =================== ================================================================================================
    ``ready``           asset ids, as the result; among them those of earlier nights that have been paid for since
    ``pending_payment`` asset ids that the credits did not cover
    ``failed``          why, by asset id: those that failed at Roughy, or are there no longer
    ``refused``         why, by file: neither audio nor video, too small, unreadable
    ``postponed``       why, by file: left to the next run (``max_credits``, ``stable_for``, no credits left)
    ``unfinished``      why, by file or asset id: what a new try may mend
    ``known``           how many files other runs have taken care of
    ``sources``         the file of each asset id
    =================== ================================================================================================

    What fails, and what Roughy refuses, is reported by the run that met it, and known to the next ones.

    With ``outlets=[AssetAlias(...)]`` a task that succeeds announces each asset that is ready, up to 100; an outlet
    that is a plain ``Asset`` makes one event of the batch.

    :param source: A folder, a prefix such as ``s3://bucket/incoming/``, a glob, a file, or a list of them. What links
        lead to as well is uploaded once. (templated)
    :param pattern: Which files of a folder are taken, by their names: a glob or a list of some. By default audio and
        video. Names that begin with a dot never are. (templated)
    :param recursive: Whether the folders of a folder are looked into. Links to folders are not followed.
    :param source_conn_id: The Airflow connection of the source's storage. (templated)
    :param ledger: The folder of the ledger. (templated)
    :param ledger_conn_id: The Airflow connection of the ledger's storage. (templated)
    :param project_id: The project of the new assets; by default the one in the connection's extra. (templated)
    :param language: The language spoken, two letters of ISO 639-1; by default Roughy detects it. (templated)
    :param parallel: How many uploads at once.
    :param max_credits: The most credits that this run may cost, and never more than the balance. The length of each
        recording is read from its headers (extra ``probe``); what does not fit is postponed, the oldest going first.
        ``None`` uploads everything: what the balance does not cover ends as ``pending_payment``. (templated)
    :param credits_if_unknown: What a recording counts for whose headers do not tell how long it is.
    :param dry_run: Whether to tell only what would be uploaded, for how many credits, and create nothing.
    :param stable_for: Leave out files that were changed in so many seconds, or ``timedelta``, for somebody may still be
        writing them.
    :param on_empty: What to do if there is no file at all: ``"return"`` an empty list, ``"skip"`` or ``"fail"``.
    :param on_pending_payment: What to do about assets that the credits did not cover, and files that were not uploaded
        because none were left: ``"fail"`` at the end, ``"skip"``, ``"return"`` them in ``pending_payment`` and
        ``postponed``, or ``"wait"`` for those that are uploaded until somebody tops up.
    :param on_failed: What to do at the end if recordings failed, were refused or are unfinished: ``"fail"``, which
        burns no retry if none would mend it, or ``"return"``.
    :param poll_interval: Seconds, or a ``timedelta``, between two looks.
    :param timeout: Seconds, or a ``timedelta``, to wait after the uploads; by default Airflow's
        ``[sensors] default_timeout``. What is not done by then is unfinished, and fails without a retry.
        ``execution_timeout`` bounds uploads and wait together.
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer, which takes no worker slot.
    """

    template_fields: Sequence[str] = (
        "source",
        "pattern",
        "source_conn_id",
        "ledger",
        "ledger_conn_id",
        "project_id",
        "language",
        "max_credits",
        "roughy_conn_id",
    )

    def __init__(
        self,
        *,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        pattern: str | Sequence[str] = MEDIA,
        recursive: bool = False,
        source_conn_id: str | None = None,
        ledger: str | os.PathLike[str] | None = None,
        ledger_conn_id: str | None = None,
        project_id: str | None = None,
        language: str | None = None,
        parallel: int = 4,
        max_credits: int | str | None = None,
        credits_if_unknown: int = 1,
        dry_run: bool = False,
        stable_for: float | timedelta = 0,
        on_empty: Literal["return", "skip", "fail"] = "return",
        on_failed: Literal["fail", "return"] = "fail",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check("on_empty", on_empty, ("return", "skip", "fail"))
        _check("on_failed", on_failed, ("fail", "return"))
        if isinstance(parallel, bool) or not isinstance(parallel, int) or not 1 <= parallel <= 64:
            raise ValueError(f"parallel must be 1 to 64, not {parallel!r}")
        if not isinstance(credits_if_unknown, int) or credits_if_unknown < 0:
            raise ValueError(f"credits_if_unknown must be a whole number from 0 on, not {credits_if_unknown!r}")
        self.source = source
        self.pattern = pattern
        self.recursive = recursive
        self.source_conn_id = source_conn_id
        self.ledger = ledger
        self.ledger_conn_id = ledger_conn_id
        self.project_id = project_id
        self.language = language
        self.parallel = parallel
        self.max_credits = max_credits
        self.credits_if_unknown = credits_if_unknown
        self._dry_run = dry_run  # BaseOperator has a method of that name.
        self.stable_for = as_seconds("stable_for", stable_for) if stable_for else 0.0
        self.on_empty = on_empty
        self.on_failed = on_failed
        #: The batch under way.
        self._running: Batch | None = None

    def execute(self, context: Context) -> list[str]:
        """Upload what is new, and wait for it.

        :returns: The assets that are ready.
        """
        started = time.time()
        batch = self._batch(context)
        max_credits = self._most_credits()
        with self.hook:
            found = find_recordings(
                self.source, pattern=self.pattern, recursive=self.recursive, conn_id=self.source_conn_id
            )
            if not found.recordings and self.on_empty != "return":
                nothing = f"There is no recording in {self.source}; {counted(found.left_out, 'other file')}"
                if self.on_empty == "skip":
                    raise AirflowSkipException(nothing)
                raise RoughyUnusableSourceError(nothing)
            try:
                with batch.running():
                    self._running = batch
                    batch.take_stock(found, stable_for=self.stable_for, look_only=self._dry_run)
                    if max_credits is not None or self._dry_run:
                        batch.plan(max_credits=max_credits, credits_if_unknown=self.credits_if_unknown)
                    if self._dry_run:
                        batch.postpone("dry run")
                    batch.upload()
                    if batch.waiting:
                        self._wait(batch, context, self.deadline(started))
            except RoughyError:
                self._tell(context, batch.report)
                raise
            finally:
                self._running = None
        return self._end(context, batch)

    def _batch(self, context: Context) -> Batch:
        return Batch(
            self.hook,
            owner=Owner.of(context["ti"]),
            project_id=self.hook.get_project_id(self.project_id),
            language=language_code(self.language) if self.language else None,
            on_pending_payment=self.on_pending_payment,
            ledger=self._ledger(),
            store=context.get("task_state_store"),
            parallel=self.parallel,
            log=self.log,
        )

    def _ledger(self) -> Ledger | None:
        if self.ledger is None:
            self.log.warning("There is no ledger: the next run uploads all of this again, and Roughy charges it again")
            return None
        ledger = Ledger(self.ledger, conn_id=self.ledger_conn_id)
        sources = [self.source] if isinstance(self.source, (str, os.PathLike)) else self.source
        for source in sources:
            if ledger.is_within(source):
                shown = without_secrets(str(source))
                raise RoughyUnusableLedgerError(f"Ledger {ledger.uri} is in the source that is ingested, {shown}")
        return ledger

    def _most_credits(self) -> int | None:
        if self.max_credits is None and not self._dry_run:
            return None
        from airflow_provider_roughy import probe

        probe.check_installed()
        if self.max_credits in (None, ""):
            return None
        # Not by int() alone, which makes 1 of 1.5.
        if not re.fullmatch(r"\s*\d+\s*", str(self.max_credits)):
            raise RoughyConfigurationError(f"max_credits must be a whole number from 0 on, not {self.max_credits!r}")
        return int(self.max_credits)

    def _wait(self, batch: Batch, context: Context, deadline: float) -> None:
        if self.deferrable:
            context["ti"].xcom_push(_XCOM_KEY, {**batch.to_dict(), "deadline": deadline})
            batch.wait_elsewhere(min(deadline, time.time() + _LONGEST_WAIT) + 2 * self.poll_interval)
            RoughyBatchTrigger(
                kind=ASSET.name,
                ids=batch.waiting[:_MOST_IDS],
                roughy_conn_id=self.roughy_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                on_pending_payment=self.on_pending_payment,
            ).take_over(self)
        verdicts = run_here(
            lambda: wait_for_batch(
                self.hook,
                ASSET,
                batch.waiting,
                poll_interval=self.poll_interval,
                deadline=deadline,
                on_pending_payment=self.on_pending_payment,
                log=self.log,
            )
        )
        batch.settle(verdicts)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> list[str]:
        """Take the trigger's verdicts.

        :returns: The assets that are ready.
        """
        verdicts = batch_from_event(event)
        ti = context["ti"]
        before = ti.xcom_pull(task_ids=self.task_id, key=_XCOM_KEY, map_indexes=ti.map_index) or {}
        with self.hook:
            batch = self._batch(context)
            with batch.running():
                batch.resume(before, [verdict.id for verdict in verdicts])
                batch.settle(verdicts)
                if batch.waiting:
                    self._wait(batch, context, before["deadline"])
        return self._end(context, batch)

    def on_kill(self) -> None:
        """Let go of the uploads under way: the next try goes on with them, or finds them discarded."""
        if self._running is not None:
            self._running.stop()

    # ---- The end

    def _tell(self, context: Context, report: Report) -> None:
        """Tell what came of each recording, in the log and in XComs."""
        self.log.info("%s", report.counts())
        lines = list(report.table())
        for start in range(0, len(lines), _LINES):
            self.log.info("\n%s", "\n".join(lines[start : start + _LINES]))
        for name, value in report.to_dict().items():
            context["ti"].xcom_push(name, value)

    def _end(self, context: Context, batch: Batch) -> list[str]:
        report, trouble = batch.report, batch.trouble
        self._tell(context, report)
        self._report_lineage(report)
        lines = [line for line in report.table() if not line.startswith(("ready", "postponed"))]
        text = "\n".join([f"{report.counts()}:", *lines[:_LINES_OF_ERROR]])
        if len(lines) > _LINES_OF_ERROR:
            text += f"\n… and {len(lines) - _LINES_OF_ERROR:,} more, see the log"
        if self.on_failed == "fail" and (report.failed or report.refused or report.unfinished):
            # What is still waited for when the time is up, no new try would hasten.
            again = report.unfinished and not batch.timed_out
            raise (RoughyIngestError if again else RoughyIngestFailedError)(text, outcomes=report.to_dict())
        if self.on_pending_payment in ("fail", "skip") and (report.pending_payment or trouble):
            unpaid = (
                f"The credits do not cover everything. {text}\nTop up at Roughy within 30 days: what is uploaded "
                "becomes ready by itself, and the next run reports it"
            )
            if self.on_pending_payment == "skip":
                raise AirflowSkipException(unpaid)
            raise trouble or RoughyIngestFailedError(unpaid, outcomes=report.to_dict())
        self._announce(context, report)
        return report.ready

    def _report_lineage(self, report: Report) -> None:
        there = [*report.ready, *report.pending_payment]
        lineage.report(
            self.hook,
            read=(asset_uri(report.sources[id]) for id in there if id in report.sources),
            written=(lineage.resource_uri(ASSET.name, id) for id in there),
        )

    def _announce(self, context: Context, report: Report) -> None:
        project_id = self.hook.get_project_id(self.project_id)

        def known_of(id: str) -> dict[str, str]:
            source = {"source": report.sources[id]} if id in report.sources else {}
            return {"asset_id": id, "project_id": project_id, **source}

        announce(
            self,
            context,
            (Product(lineage.resource_uri(ASSET.name, id), known_of(id)) for id in report.ready),
            {
                "project_id": project_id,
                "counts": report.numbers(),
                **ids_by_outcome(
                    {"ready": report.ready, "pending_payment": report.pending_payment, "failed": list(report.failed)}
                ),
            },
        )


def _check(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {tuple(known)}, not {value!r}")
