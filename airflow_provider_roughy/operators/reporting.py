"""How an operator reports its results as a whole: the report in a storage, and the text for notifiers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyError
from airflow_provider_roughy.observability.links import report_url, show_report
from airflow_provider_roughy.observability.report import check_location, find_facts, page_uri, write_report
from airflow_provider_roughy.observability.report_summary import ReportFacts, ReportSummary, visible
from airflow_provider_roughy.transfer.storage import as_text, without_secrets, words_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from airflow_provider_roughy.compat import Context
    from airflow_provider_roughy.hooks import RoughyHook
    from airflow_provider_roughy.ingest.result import RecordingResult
    from airflow_provider_roughy.logs import Log
    from airflow_provider_roughy.observability.report import ReportLocation

#: Lines of the table in one log record, and in an error message.
_MAX_LINES, _MAX_LINES_OF_ERROR = 100, 10


def facts_of(context: Context, *, work: str = "ingest") -> ReportFacts:
    """Return what the report of a task says of the task, which begins now.

    :param context: The context of the task.
    :param work: What the task does, as in :class:`ReportFacts`.
    """
    ti: Any = context["ti"]
    return ReportFacts(
        dag_id=ti.dag_id,
        task_id=ti.task_id,
        run_id=str(ti.run_id),
        map_index=ti.map_index if (ti.map_index or 0) >= 0 else None,
        try_number=ti.try_number,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        work=work,
    )


def balance_of(hook: RoughyHook, log: Log) -> int | None:
    """Return the balance in credits for a report; ``None`` if it cannot be read.

    :param hook: Talks to Roughy.
    :param log: Logs why it cannot be read.
    """
    try:
        return hook.get_credit_balance()
    except RoughyError as error:
        log.warning("Reading the balance for the report failed; the report does not show it: %s", error)
        return None


def log_table(log: Log, lines: Sequence[str]) -> None:
    """Log a table, in records that no log handler cuts off.

    :param log: Logs it.
    :param lines: Its lines.
    """
    for start in range(0, len(lines), _MAX_LINES):
        log.info("\n%s", "\n".join(lines[start : start + _MAX_LINES]))


def error_text(summary: str, lines: Sequence[str], *, total: int | None = None) -> str:
    """Return what an error message says of the results: the counts, and the first lines of the table.

    :param summary: The counts.
    :param lines: The first lines of the table.
    :param total: How many lines the table has; by default those.
    """
    text = "\n".join([summary, *lines[:_MAX_LINES_OF_ERROR]])
    more = (len(lines) if total is None else total) - _MAX_LINES_OF_ERROR
    return f"{text}\n… and {more:,} more, see the log" if more > 0 else text


class TaskReport:
    """The report of one try of a task.

    :param context: The context of the task.
    :param location: The folder of the report; ``None`` to write none.
    :param conn_id: The Airflow connection of its storage.
    :param hook: Talks to Roughy, to read the balance.
    :param log: Logs events.
    :param work: What the task does, as in :class:`ReportFacts`.
    """

    def __init__(
        self,
        context: Context,
        *,
        location: ReportLocation | None,
        conn_id: str | None,
        hook: RoughyHook,
        log: Log,
        work: str = "ingest",
    ) -> None:
        self._ti: Any = context["ti"]
        self._location = location
        self._conn_id = conn_id
        self._hook = hook
        self._log = log
        self.facts = facts_of(context, work=work)

    def begin(self) -> None:
        """Check the folder of the report, and read the balance. Nothing is done without a report.

        :raises RoughyUnusableTargetError: If no report can be written there.
        :raises RoughyTargetError: If its storage does not answer.
        """
        if self._location is not None:
            check_location(self._location, conn_id=self._conn_id)
            self._warn_of_another(self._location)
            self.facts = replace(self.facts, balance_before=self.balance())

    def _warn_of_another(self, location: ReportLocation) -> None:
        """Warn if the folder has the report of another task or run."""
        mine = self.facts
        try:
            found = find_facts(location, conn_id=self._conn_id, part=self._part)
        except Exception:  # Such as a storage that may be written, but not read.
            return
        if found is not None and (found.dag_id, found.task_id, found.run_id) != (
            mine.dag_id,
            mine.task_id,
            mine.run_id,
        ):
            self._log.warning(
                "Replacing the report of task %s.%s of run %s in %s: give each task and each run a folder of its own",
                visible(found.dag_id),
                visible(found.task_id),
                visible(found.run_id),
                as_text(without_secrets(str(location))),
            )

    @property
    def _part(self) -> str | None:
        return None if self.facts.map_index is None else f"part-{self.facts.map_index:04d}"

    def resume(self, facts: Mapping[str, Any] | None) -> None:
        """Continue after a wait in the triggerer.

        :param facts: The facts before the wait, as plain JSON; ``None`` if an earlier release has stored none.
        """
        if facts:
            self.facts = ReportFacts.from_dict(facts)

    def balance(self) -> int | None:
        """Return the balance in credits; ``None`` if there is no report, or the balance cannot be read."""
        if self._location is None:
            return None
        return balance_of(self._hook, self._log)

    def write(
        self, results: Collection[RecordingResult], *, error: BaseException | None = None, **facts: Any
    ) -> Exception | None:
        """Write the report, and push the XComs ``summary`` and ``report``.

        :param results: The results.
        :param error: The error that ended the task before all results were there.
        :param facts: More fields of the :class:`ReportFacts`.
        :returns: The error because of which the report could not be written, which is logged.
        """
        facts_now = replace(self.facts, error=None if error is None else words_of(error), **facts)
        if self._location is None:
            self._push(ReportSummary.of(results, facts_now))
            return None
        where = as_text(without_secrets(str(self._location)))
        try:
            summary = write_report(self._location, results, facts=facts_now, conn_id=self._conn_id, part=self._part)
        except Exception as err:  # Whatever goes wrong, the task's own error is more important.
            self._log.error("Writing the report to %s failed: %s", where, words_of(err))
            self._push(ReportSummary.of(results, facts_now))
            return err
        self._log.info("Wrote the report to %s", where)
        self._ti.xcom_push("report", where)
        if url := report_url(page_uri(self._location, part=self._part)):
            show_report(self._ti, url)
        self._push(summary, report=url or where)
        return None

    def _push(self, summary: ReportSummary, **where: str) -> None:
        self._ti.xcom_push("summary", summary.text(**where))
