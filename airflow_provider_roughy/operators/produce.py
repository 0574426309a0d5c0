"""The operator that makes and writes the outputs of many recordings."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, cast

from airflow_provider_roughy import api
from airflow_provider_roughy.arguments import check_bool, check_choice, check_parallel
from airflow_provider_roughy.compat import AirflowTaskTimeout, XComArg
from airflow_provider_roughy.event_loop import run_here
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyProduceError,
    RoughyProduceFailedError,
    RoughyProtocolError,
    RoughyTimeoutError,
)
from airflow_provider_roughy.http import interrupt
from airflow_provider_roughy.ingest.result import BatchResults, Status
from airflow_provider_roughy.ledger import ClaimOwner, Ledger
from airflow_provider_roughy.lifecycle import ASSET, batch_from_event, end_unpaid
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.observability import lineage
from airflow_provider_roughy.observability.links import report_links
from airflow_provider_roughy.observability.openlineage import RunFacts
from airflow_provider_roughy.observability.outlets import Product, announce, ids_by_outcome
from airflow_provider_roughy.observability.report import find_missing_shards, read_report
from airflow_provider_roughy.operators.ingest import RoughyIngestOperator
from airflow_provider_roughy.operators.interruptible import InterruptibleOperator
from airflow_provider_roughy.operators.reporting import TaskReport, error_text, log_table
from airflow_provider_roughy.operators.waiting import MAX_IDS, WaitingOperator
from airflow_provider_roughy.polling import wait_for_some
from airflow_provider_roughy.produce.inputs import asset_ids_of, ready_of, reports_of, sources_of_ledger
from airflow_provider_roughy.produce.names import check_template
from airflow_provider_roughy.produce.production import Production
from airflow_provider_roughy.produce.wanted import Wanted, check_frame_rate, check_render, check_scripts, formats_of
from airflow_provider_roughy.produce.writing import Writer
from airflow_provider_roughy.transfer.storage import asset_uri, canonical_location, without_secrets
from airflow_provider_roughy.transfer.target import Overwrite, check_overwrite, check_rendered
from airflow_provider_roughy.triggers import RoughyProduceTrigger

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import Context, ObjectStoragePath
    from airflow_provider_roughy.lifecycle import Verdict

#: Seconds after which a wait ends as soon as a cut or render is completed, so that its files are written. Each such
#: wait costs the start of a process.
_GO_ON_AFTER = 60.0
#: Seconds of one wait if there is more to wait for than one wait takes.
_TURN_SECONDS = 300.0
#: What a try keeps during a wait, as its plan depends on it; ``parallel`` and the like may change.
_KEPT = ("wanted", "target", "target_conn_id", "source_root", "ledger", "ledger_conn_id", "overwrite")
#: Templates are rendered in these, and the values of mappings and lists.
_TEMPLATED = (
    "asset_ids",
    "from_report",
    "from_report_conn_id",
    "sources",
    "source_root",
    "script",
    "captions",
    "timeline",
    "frame_rate",
    "render",
    "target",
    "target_conn_id",
    "ledger",
    "ledger_conn_id",
    "report",
    "report_conn_id",
    "roughy_conn_id",
)


class RoughyProduceOperator(InterruptibleOperator, WaitingOperator):
    """Makes captions, timelines, renders and originals of many recordings, and writes them to your storage.

    One task cuts and renders a whole batch: it requests ``parallel`` cuts and renders at a time, waits for all of them
    together, with ``deferrable=True`` in the triggerer, and writes ``parallel`` files at a time, each whole or not at
    all. A recording whose cut is completed continues while others wait. An error in one output does not affect the
    rest. An error that affects all of them (rejected key, full target, Roughy down) stops the batch.

    ::

        ingest = RoughyIngestOperator(task_id="ingest", source="/data/recordings", ledger="/data/roughy-ledger")
        RoughyProduceOperator(
            task_id="produce",
            asset_ids=ingest.output,
            captions=["srt", "vtt"],
            render={"video": {"format": "mp4"}, "audio": {"format": "m4a"}},
            target="s3://rough-cuts/{source_dir}/{source_name}/",
            ledger="/data/roughy-ledger",
        )

    **With a ledger, each output is written once.** A retry, a cleared task and another run find what is written, and
    make only what is missing: an output of another script or other options, of another version of the recording, or
    whose file is gone or has another size. The ledger may be that of the batch. Cuts and renders are never made twice,
    with or without a ledger, as Roughy returns the same one for the same request. Without a ledger, each try writes all
    files again, as ``overwrite`` says.

    What does not apply to a recording is left out, and the table says so: a timeline of audio without ``frame_rate``, a
    video of audio.

    Placeholders of ``target``, in single braces:

    ================== =================================================================================================
    ``{source_name}``  the recording's file name: ``interview.mp4``
    ``{source_stem}``  its file name without the extension: ``interview``
    ``{source_dir}``   its folder, relative to ``source_root``; empty for a recording in that folder itself
    ``{asset_id}``     the id of its asset
    ``{project_id}``   the id of the asset's project
    ``{cut_id}``       the id of the cut
    ``{kind}``         ``captions``, ``timeline``, ``render`` or ``original``
    ``{format}``       the format by the name that you gave, or the extension of the original
    ================== =================================================================================================

    If it ends with a slash, a file is named ``{kind}.{format}`` in it. Two recordings whose outputs would have the same
    name are rejected before anything is made of them; if Roughy has not prepared one of them yet, only that one, once
    it has. A name never leads out of the target: slashes and control characters in a
    value are replaced.

    The result is the list of assets whose outputs are all written, at least one. XComs have the rest, also if the task
    fails:

    =================== ================================================================================================
    ``ready``           asset ids, as the result
    ``outputs``         the URI of each output that is written, by asset id and by name (``captions.srt``)
    ``left_out``        the reason of each output that does not apply, by asset id and by name
    ``pending_payment`` asset ids that the credits do not cover
    ``failed``          the reason, by asset id: a cut or a render failed, or a format is unknown
    ``rejected``        the reason, by recording: its name collides, or ``overwrite="fail"`` and another file exists
    ``deferred``        the reason, by recording: not made, because the batch was stopped
    ``interrupted``     the reason, by recording: an error that a retry may fix, or ``timeout`` was over
    ``sources``         the recording of each asset id
    =================== ================================================================================================

    With ``outlets=[AssetAlias(...)]`` a task that succeeds announces each file that this run has written, up to 100; an
    outlet that is a plain ``Asset`` makes one event of the batch.

    :param asset_ids: The assets: a list of ids, or the output of the task that ingests them. Give this or
        ``from_report``. (templated)
    :param from_report: The report of a batch, such as ``ingest.output["report"]``, also if ``ingest`` is mapped over
        the shards of a manifest: the folder that was given to ``RoughyIngestOperator(report=…)``. Its ready recordings
        are used, however many they are. (templated)
    :param from_report_conn_id: The Airflow connection of that report's storage. (templated)
    :param sources: The file of each asset id, for names. By default those of the task that ``asset_ids`` is the output
        of, if it is a ``RoughyIngestOperator``, or those that the ledger has. A recording without a source has its
        asset's id as its name. (templated)
    :param source_root: The folder to which ``{source_dir}`` is relative, by default the ``source`` of that task. A
        recording elsewhere has its whole path. (templated)
    :param script: The script to cut by, up to 100,000 characters; or a mapping of scripts by asset id, source or file
        name. By default, and for recordings that the mapping does not have, Roughy decides what to keep. (templated)
    :param captions: The format of captions, or several: ``"srt"``, ``"vtt"``. (templated)
    :param timeline: The format of an editor's timeline, or several, by Roughy's names, e.g. ``"fcpxml"``. (templated)
    :param frame_rate: Frames a second of the timeline, for recordings that have no frame rate of their own. (templated)
    :param render: The output to render, in the API's own words as for ``RoughyRenderOperator``; or such outputs by the
        asset's type, ``{"video": {…}, "audio": {…}}``. (templated)
    :param render_of: Whether to render the ``"cut"`` or the whole ``"asset"``.
    :param original: Whether to write the original file.
    :param target: Where the files go: an absolute path or a URI with placeholders, as above. (templated)
    :param target_conn_id: The Airflow connection of the target's storage. (templated)
    :param overwrite: What to do about a file that exists and is not recorded in the ledger, or has another size, as for
        ``RoughyDownloadOperator``: ``"replace"`` it, ``"skip"`` it if it is the same, or ``"fail"`` if it is not.
    :param ledger: The folder that remembers what was written: an absolute path or a URI. (templated)
    :param ledger_conn_id: The Airflow connection of the ledger's storage. (templated)
    :param report: The folder of the report that this task writes, as for ``RoughyIngestOperator``. It must not be that
        of the batch. (templated)
    :param report_conn_id: The Airflow connection of the report's storage. (templated)
    :param parallel: How many requests or files at once, 1 to 64.
    :param on_failed: What to do at the end if outputs were not made: ``"fail"``, with a retry only if one may help, or
        ``"return"``.
    :param on_pending_payment: What to do about assets that the credits do not cover: ``"fail"`` at the end, ``"skip"``,
        ``"return"`` them in ``pending_payment``, or ``"wait"`` until the credits are topped up.
    :param poll_interval: Seconds, or a ``timedelta``, between two polls.
    :param timeout: Seconds, or a ``timedelta``, for cuts, renders and files together; by default Airflow's
        ``[sensors] default_timeout``. What is not completed by then is ``interrupted``, without a retry; a file that is
        being written is completed.
        ``execution_timeout`` bounds the task as well.
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer, which takes no worker slot. The task continues when everything
        has ended, and from a minute on when something has, so that files are written meanwhile.
    :raises RoughyProduceFailedError: If outputs were not made, and no retry would help.
    :raises RoughyProduceError: If a retry may help some of them.
    :raises RoughyConfigurationError: If a parameter is unusable. Nothing was made.
    :raises RoughyUnusableLedgerError: If the ledger cannot be used. Nothing was made.
    """

    operator_extra_links = report_links()
    template_fields: Sequence[str] = _TEMPLATED
    template_fields_renderers = {"render": "json"}  # noqa: RUF012 - as Airflow declares it

    def __init__(
        self,
        *,
        target: str | os.PathLike[str] | ObjectStoragePath,
        asset_ids: Sequence[str] | str | None = None,
        from_report: str | os.PathLike[str] | ObjectStoragePath | None = None,
        from_report_conn_id: str | None = None,
        sources: Mapping[str, str] | None = None,
        source_root: str | None = None,
        script: str | Mapping[str, str] | None = None,
        captions: str | Sequence[str] | None = None,
        timeline: str | Sequence[str] | None = None,
        frame_rate: float | str | None = None,
        render: Mapping[str, Any] | None = None,
        render_of: Literal["cut", "asset"] = "cut",
        original: bool = False,
        target_conn_id: str | None = None,
        overwrite: Overwrite = "replace",
        ledger: str | os.PathLike[str] | None = None,
        ledger_conn_id: str | None = None,
        report: str | os.PathLike[str] | None = None,
        report_conn_id: str | None = None,
        parallel: int = 4,
        on_failed: Literal["fail", "return"] = "fail",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (asset_ids is None) == (from_report is None):
            raise ValueError("RoughyProduceOperator takes `asset_ids` or `from_report`, and needs one of them")
        if from_report is not None and sources is not None:
            raise ValueError("`sources` belongs to `asset_ids`: a report has the source of each recording")
        if not (captions or timeline or render or original):
            raise ValueError("nothing to make: give `captions`, `timeline`, `render` or `original`")
        check_choice("render_of", render_of, ("cut", "asset"))
        check_choice("on_failed", on_failed, ("fail", "return"))
        check_bool("original", original)
        check_parallel(parallel)
        check_overwrite(overwrite)
        for name, value in (("captions", captions), ("timeline", timeline)):
            if not _has_xcoms(value):
                formats_of(name, value)
        if not _has_xcoms(render):
            check_render(render)
        if not isinstance(target, XComArg):
            check_template(str(target))
        ingest = getattr(from_report if asset_ids is None else asset_ids, "operator", None)
        if isinstance(ingest, RoughyIngestOperator):
            if sources is None and from_report is None:
                sources = cast("Any", ingest.output)["sources"]
            if source_root is None and isinstance(ingest.source, (str, os.PathLike)):
                source_root = str(ingest.source)
        self.asset_ids = asset_ids
        self.from_report = from_report
        self.from_report_conn_id = from_report_conn_id
        self.sources = sources
        self.source_root = source_root
        self.script = script
        self.captions = captions
        self.timeline = timeline
        self.frame_rate = frame_rate
        self.render = render
        self.render_of = render_of
        self.original = original
        self.target = target
        self.target_conn_id = target_conn_id or getattr(target, "conn_id", None)
        self.overwrite = overwrite
        self.ledger = ledger
        self.ledger_conn_id = ledger_conn_id
        self.report = report
        self.report_conn_id = report_conn_id
        self.parallel = parallel
        self.on_failed = on_failed
        #: The work under way.
        self._running: Production | None = None
        self._is_reported = False

    def execute(self, context: Context) -> list[str]:
        """Make and write the outputs.

        :returns: The assets whose outputs are all written.
        """
        deadline = self._interrupt.deadline = self.deadline(time.time())
        report = self._task_report(context)
        self._check_report()
        with self._interrupt, self.hook:
            production = self._production(context, self._arguments())
            with self._reported(context, production, report):
                sources = self._sources(production.ledger)
                report.begin()
                self.log.info("Making the outputs of %s", counted(len(sources), "recording"))
                production.begin(sources, self._scripts())
                return self._work(context, production, report, deadline)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> list[str]:
        """Continue after the wait in the triggerer.

        :returns: The assets whose outputs are all written.
        """
        before = self._state_before(context)
        if before is None:
            batch_from_event(event)
            # What was requested and written is found again.
            self.log.warning(
                "The state from before the wait is missing, or another release has stored it; starting again, with a "
                "new `timeout`"
            )
            return self.execute(context)
        return self._continue(context, before, event=event)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the wait in the triggerer; report what is known if Airflow ended the wait."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (RoughyTimeoutError, RoughyProtocolError) as error:
            before = self._state_before(context)
            if before is not None and not self._is_reported:
                try:
                    self._continue(context, before, error=error)
                except Exception as err:
                    if err is not error:
                        self.log.warning("Reporting the results so far failed: %s", err)
            raise

    def _state_before(self, context: Context) -> dict[str, Any] | None:
        """Return the state from before the wait; ``None`` if it was deleted, or another release has stored it."""
        before = self.saved_state(context)
        needed = {"arguments", "scripts", "recordings", "deadline", "turn"}
        if not isinstance(before, dict) or not needed <= before.keys():
            return None
        return before if set(_KEPT) <= before["arguments"].keys() else None

    def _continue(
        self,
        context: Context,
        before: dict[str, Any],
        *,
        event: dict[str, Any] | None = None,
        error: Exception | None = None,
    ) -> list[str]:
        """Continue with the arguments from before the wait.

        :param before: The state from before the wait.
        :param event: The event of the trigger.
        :param error: The error with which Airflow ended the wait; then there is no event.
        """
        report = self._task_report(context)
        report.resume(before.get("report_facts"))
        self._interrupt.deadline = before["deadline"]
        with self._interrupt, self.hook:
            production = self._production(context, before["arguments"])
            with self._reported(context, production, report):
                production.resume(before)
                if error is not None:
                    raise error
                production.settle(batch_from_event(event))
                return self._work(context, production, report, before["deadline"], turn=before["turn"])

    def stop_running(self) -> None:
        """End the work under way. The next try makes what is missing."""
        if self._running is not None:
            self._running.stop()

    # ---- Parameters

    def _arguments(self) -> dict[str, Any]:
        """Return what this try makes, and where, as plain JSON. A try keeps it if the DAG changes during a wait."""
        if self.source_root is not None and not isinstance(self.source_root, str):
            raise RoughyConfigurationError(f"source_root must be a folder, not {self.source_root!r}; nothing was made")
        return {
            "wanted": asdict(self._wanted()),
            "target": str(self.target),
            "target_conn_id": self.target_conn_id,
            "source_root": self.source_root,
            "ledger": None if self.ledger is None else str(self.ledger),
            "ledger_conn_id": self.ledger_conn_id or getattr(self.ledger, "conn_id", None),
            "overwrite": self.overwrite,
        }

    def _production(self, context: Context, arguments: Mapping[str, Any]) -> Production:
        ledger = self._open_ledger(arguments)
        owner = ClaimOwner.of(context["ti"])
        writer = Writer(
            self.hook,
            owner=owner,
            ledger=ledger,
            target_conn_id=arguments["target_conn_id"],
            overwrite=arguments["overwrite"],
            log=self.log,
        )
        check_rendered(arguments["target"])
        return Production(
            self.hook,
            writer,
            arguments=arguments,
            owner=owner,
            ledger=ledger,
            parallel=self.parallel,
            go_on_after=_GO_ON_AFTER,
            on_pending_payment=self.on_pending_payment,
            log=self.log,
        )

    def _wanted(self) -> Wanted:
        try:
            check_render(self.render)
            check_frame_rate(self.frame_rate)
            check_scripts(self.script)
            return Wanted(
                captions=formats_of("captions", self.captions),
                timelines=formats_of("timeline", self.timeline),
                frame_rate=None if self.frame_rate is None else str(self.frame_rate),
                render=self.render,
                render_of=self.render_of,
                original=self.original,
            )
        except ValueError as err:
            raise RoughyConfigurationError(f"{err}; nothing was made") from None

    def _open_ledger(self, arguments: Mapping[str, Any]) -> Ledger | None:
        if arguments["ledger"] is None:
            self.log.warning("No `ledger` is given: a retry and the next run write all files again")
            return None
        return Ledger(arguments["ledger"], conn_id=arguments["ledger_conn_id"])

    def _check_report(self) -> None:
        """Refuse to replace the report that this task reads."""
        if self.report is None or self.from_report is None:
            return
        folders = [str(each) for each in reports_of(self.from_report)]
        folders = [each.rpartition("/")[0] if each.endswith(".jsonl") else each for each in folders]
        if canonical_location(str(self.report)) in map(canonical_location, folders):
            raise RoughyConfigurationError(
                "`report` is the folder of `from_report`: give this task a folder of its own. Nothing was made"
            )

    def _sources(self, ledger: Ledger | None) -> dict[str, str]:
        """Return the source of each recording, by its asset's id. A web address may have a signature in its query."""
        if self.from_report is not None:
            reports = reports_of(self.from_report)
            for each in reports:
                if missing := find_missing_shards(each, conn_id=self.from_report_conn_id):
                    self.log.warning("%s", missing)
            results = (read_report(each, self.from_report_conn_id) for each in reports)
            ready = ready_of(chain.from_iterable(results))
            return {_canonical(id): source for id, source in ready.items()}
        ids = [_canonical(id) for id in asset_ids_of(self.asset_ids)]
        if self.sources is not None and not isinstance(self.sources, Mapping):
            raise RoughyConfigurationError(f"`sources` must be a mapping of files by asset id, not {self.sources!r}")
        sources = {_canonical(id): str(each) for id, each in (self.sources or {}).items() if each}
        unknown = [id for id in ids if id not in sources]
        if unknown and ledger is not None and ("{source_" in str(self.target) or isinstance(self.script, Mapping)):
            sources |= sources_of_ledger(ledger, unknown)
        return {id: sources.get(id, id) for id in ids}

    def _scripts(self) -> Callable[[str, str], str | None]:
        """Return a function that returns the script of a recording, by its asset's id and its source."""
        script = self.script
        if not isinstance(script, Mapping):
            return lambda asset_id, source: script
        scripts = {_canonical(name): each for name, each in script.items()}

        def script_of(asset_id: str, source: str) -> str | None:
            shown = without_secrets(source)
            names = (asset_id, source, shown, shown.rpartition("/")[2])
            return next((scripts[name] for name in names if name in scripts), None)

        return script_of

    # ---- Work and wait

    def _work(
        self, context: Context, production: Production, report: TaskReport, deadline: float, *, turn: int = 0
    ) -> list[str]:
        production.work()
        not_before = 0.0
        while True:
            waiting, held_until = production.waiting_now()
            if waiting and self.deferrable:
                self._defer_wait(context, production, report, deadline, turn, waiting, held_until)
            elif waiting:
                verdicts = self._wait(waiting, deadline, not_before, held_until)
                production.settle(verdicts)
                if verdicts:
                    # What is requested now is polled with the rest, one interval later.
                    not_before = time.time() + self.poll_interval
            elif held_until is not None:
                interrupt.pause(max(0.0, min(held_until, deadline) - time.time()))
            else:
                break
            production.work()
        interrupt.check()
        not_written = self._push(context, production, report)
        return self._end(context, production, not_written)

    def _wait(
        self, waiting: Mapping[str, Sequence[str]], deadline: float, not_before: float, ends_at: float | None
    ) -> list[Verdict]:
        """Wait on this worker until a poll finds that something has ended."""
        return run_here(
            lambda: wait_for_some(
                self.hook,
                waiting,
                go_on_after=0.0,
                ends_at=ends_at,
                poll_interval=self.poll_interval,
                deadline=deadline,
                not_before=not_before,
                on_pending_payment=self.on_pending_payment,
                log=self.log,
            )
        )

    def _defer_wait(
        self,
        context: Context,
        production: Production,
        report: TaskReport,
        deadline: float,
        turn: int,
        waiting: Mapping[str, Sequence[str]],
        ends_at: float | None,
    ) -> None:
        # Those that are nearly done first.
        pairs = [(kind, id) for kind, of_kind in reversed(list(waiting.items())) for id in of_kind]
        if len(pairs) > MAX_IDS:
            # One wait takes no more, so they take turns.
            start = turn * MAX_IDS % len(pairs)
            pairs = (pairs[start:] + pairs[:start])[:MAX_IDS]
            turn_ends = time.time() + _TURN_SECONDS
            ends_at = turn_ends if ends_at is None else min(ends_at, turn_ends)
        ids: dict[str, list[str]] = {}
        for kind, id in pairs:
            ids.setdefault(kind, []).append(id)
        before = {
            **production.to_dict(),
            "deadline": deadline,
            "turn": turn + 1,
            "report_facts": report.facts.to_dict(),
        }
        self.save_state(context, before)
        RoughyProduceTrigger(
            ids=ids,
            go_on_after=_GO_ON_AFTER,
            ends_at=ends_at,
            roughy_conn_id=self.roughy_conn_id,
            poll_interval=self.poll_interval,
            deadline=deadline,
            on_pending_payment=self.on_pending_payment,
        ).defer(self)

    # ---- The end

    @contextmanager
    def _reported(self, context: Context, production: Production, report: TaskReport) -> Iterator[None]:
        """Report the results so far if the body raises an error before it has reported them."""
        self._running, self._is_reported = production, False
        try:
            yield
        except (Exception, AirflowTaskTimeout) as error:
            if not self._is_reported:
                self._push(context, production, report, error=error)
            raise
        finally:
            self._running = None

    def _task_report(self, context: Context) -> TaskReport:
        return TaskReport(
            context, location=self.report, conn_id=self.report_conn_id, hook=self.hook, log=self.log, work="produce"
        )

    def _push(
        self, context: Context, production: Production, report: TaskReport, *, error: BaseException | None = None
    ) -> Exception | None:
        """Report the result of each recording in the log, in XComs and in the report.

        :param error: The error that has ended the batch.
        :returns: The error because of which the report could not be written.
        """
        results = production.results()
        # An error before the first result needs no summary.
        if error is None or results.results:
            self.log.info("%s", results.summary())
        log_table(self.log, list(results.table()))
        for name, value in _xcoms(results, production).items():
            context["ti"].xcom_push(name, value)
        self._is_reported = True
        self.run_facts = RunFacts(
            results.numbers(),
            request_ids=[result.request_id for result in results.results if result.request_id],
        )
        return report.write(results.results, error=error or production.fatal, balance_after=report.balance())

    def _end(self, context: Context, production: Production, not_written: Exception | None) -> list[str]:
        results = production.results()
        self._report_lineage(production)
        lines = list(results.table(without=(Status.READY,)))
        text = error_text(f"{results.summary()}:", lines)
        if production.fatal is not None:
            text = f"The batch was stopped: {production.fatal}\n{text}"
        outcomes = _xcoms(results, production)
        bad = results.of(Status.FAILED, Status.REJECTED, Status.INTERRUPTED, Status.DEFERRED)
        if production.fatal is not None or (bad and self.on_failed == "fail"):
            again = any(result.retryable for result in results.results)
            if production.fatal is not None:
                again = not production.fatal.final
            raise (RoughyProduceError if again else RoughyProduceFailedError)(text, outcomes=outcomes)
        if results.of(Status.PENDING_PAYMENT):
            message = (
                f"The credits do not cover everything. {text}\nTop up at Roughy within 30 days, then clear the task"
            )
            error = RoughyProduceFailedError(message, outcomes=outcomes)
            end_unpaid(self.on_pending_payment, error, why_skipped=message)
        if not_written is not None:
            raise not_written
        self._announce(context, production, results)
        return _ready(production)

    def _report_lineage(self, production: Production) -> None:
        written = [recording for recording in production.recordings if recording.written]
        projects = {recording.project_id for recording in written}
        lineage.report(
            self.hook,
            project_id=projects.pop() if len(projects) == 1 else None,
            read=(lineage.resource_uri(ASSET.name, recording.asset_id) for recording in written),
            written=(asset_uri(uri) for recording in written for uri in recording.files().values()),
        )

    def _announce(self, context: Context, production: Production, results: BatchResults) -> None:
        products = []
        for recording in production.recordings:
            for name, uri in recording.files().items():
                if name not in recording.new:
                    continue
                ids = {"asset_id": recording.asset_id, "cut_id": recording.cut_id}
                if name.startswith("render."):
                    ids["render_id"] = recording.render_id
                extra = {"target": uri, "output": name, "source": recording.source, **ids}
                extra = {key: value for key, value in extra.items() if value}
                products.append(Product(asset_uri(uri), extra))
        statuses = (Status.READY, Status.PENDING_PAYMENT, Status.FAILED)
        summary = {
            "counts": results.numbers(),
            "files": sum(len(recording.written) for recording in production.recordings),
            **ids_by_outcome({**{each.value: results.ids(each) for each in statuses}, "ready": _ready(production)}),
        }
        announce(self, context, products, summary)


def _ready(production: Production) -> list[str]:
    """Return the assets whose outputs are all written, as far as any applies: the next task may delete them."""
    return [each.asset_id for each in production.recordings if each.written and each.result().status == Status.READY]


def _xcoms(results: BatchResults, production: Production) -> dict[str, Any]:
    """Return the XComs of the operator, by key."""
    names = ("pending_payment", "failed", "rejected", "deferred", "interrupted", "sources")
    all_of_batch = results.xcoms()
    return {
        **{name: all_of_batch[name] for name in names},
        "ready": _ready(production),
        "outputs": {each.asset_id: each.files() for each in production.recordings if each.written},
        "left_out": {each.asset_id: dict(each.left_out) for each in production.recordings if each.left_out},
    }


def _has_xcoms(value: Any) -> bool:
    """Return whether a value is the result of another task, or has one in it, so that it is not known yet."""
    return any(True for _ in XComArg.iter_xcom_references(value))


def _canonical(asset_id: str) -> str:
    """Spell an id as Roughy does. A malformed id is returned as it is; reading the asset reports it."""
    try:
        return api.resource_id("asset_id", asset_id)
    except RoughyConfigurationError:
        return asset_id
