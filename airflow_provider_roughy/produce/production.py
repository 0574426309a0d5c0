"""The outputs of many recordings in one task: request cuts and renders, wait, and write what is completed.

Roughy returns the same cut and the same render for the same request. So requests are not stored: a later try sends them
again, and gets the cuts and renders that exist.

An error of one output does not affect the others. An error that affects all of them (rejected key, full target, Roughy
down) stops the batch.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy import api
from airflow_provider_roughy.api import RoughyAsset
from airflow_provider_roughy.event_loop import run_here
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAssetFailedError,
    RoughyAssetProcessingError,
    RoughyAuthenticationError,
    RoughyError,
    RoughyInterruptedError,
    RoughyPaymentRequiredError,
    RoughyProtocolError,
)
from airflow_provider_roughy.http import interrupt
from airflow_provider_roughy.http.retry import Backoff
from airflow_provider_roughy.ingest.result import BatchResults, Status
from airflow_provider_roughy.ingest.verdicts import seconds_of
from airflow_provider_roughy.lifecycle import ASSET, CUT, KINDS, RENDER, Outcome, Verdict
from airflow_provider_roughy.logs import Log, counted
from airflow_provider_roughy.polling import poll_batch, read_batch
from airflow_provider_roughy.produce.names import TargetTemplate
from airflow_provider_roughy.produce.outputs import find_collisions, find_written, plan
from airflow_provider_roughy.produce.problems import UNPAID, may_concern_all, problem_of, stops_batch
from airflow_provider_roughy.produce.recording import Problem, Recording
from airflow_provider_roughy.produce.wanted import Wanted
from airflow_provider_roughy.transfer.pool import Stopped, TransferPool
from airflow_provider_roughy.transfer.progress import bytes_in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from airflow_provider_roughy.hooks import RoughyHook
    from airflow_provider_roughy.ledger import ClaimOwner, Ledger
    from airflow_provider_roughy.lifecycle import Kind, OnPendingPayment
    from airflow_provider_roughy.polling.poller import Answer
    from airflow_provider_roughy.produce.wanted import Output
    from airflow_provider_roughy.produce.writing import Writer
    from airflow_provider_roughy.transfer.pool import OnProgress

#: Recordings that failed in a row with errors that may pass, or as the target may not be written, after which the
#: batch stops.
_MAX_FAILED_IN_A_ROW = 5
#: How often in a row an asset that is read as ready may refuse a cut or render as not ready.
_MAX_REFUSALS = 5
#: Seconds of ``Retry-After`` that a request for a cut or render obeys.
_MAX_RETRY_AFTER = 30.0
#: The order in which kinds are written: small files first.
_ORDER = ("captions", "timeline", "render", "original")

_log = logging.getLogger(__name__)


class Production:
    """One try over a batch of recordings.

    :param hook: Talks to Roughy.
    :param writer: Writes the outputs.
    :param arguments: What is made and where, as plain JSON: ``wanted``, ``target`` and ``source_root``. They are kept
        over a wait, together with other arguments of the caller.
    :param owner: This try of this run.
    :param ledger: The ledger, which the writer uses, too.
    :param parallel: How many requests or files at once.
    :param go_on_after: Seconds for which files are written before cuts and renders are polled again.
    :param on_pending_payment: Whether unpaid assets are waited for (``"wait"``).
    :param log: Logs events.
    """

    def __init__(
        self,
        hook: RoughyHook,
        writer: Writer,
        *,
        arguments: Mapping[str, Any],
        owner: ClaimOwner,
        ledger: Ledger | None = None,
        parallel: int = 4,
        go_on_after: float = 60.0,
        on_pending_payment: OnPendingPayment = "fail",
        log: Log = _log,
    ) -> None:
        self._hook = hook
        self._writer = writer
        self._arguments = arguments
        self._wanted = Wanted(**arguments["wanted"])
        self._template = TargetTemplate(arguments["target"])
        self._source_root = arguments["source_root"]
        self._owner = owner
        self._parallel = parallel
        self._go_on_after = go_on_after
        self._on_pending_payment = on_pending_payment
        self._log = log
        self.recordings: list[Recording] = []
        #: The ledger.
        self.ledger = ledger
        #: The error that stopped the batch, if one did.
        self.fatal: RoughyError | None = None
        self._failed_in_a_row: set[Recording] = set()
        self._lock = threading.Lock()
        self._pool: TransferPool[Any] | None = None

    # ---- What to make

    def begin(self, sources: Mapping[str, str], scripts: Callable[[str, str], str | None]) -> None:
        """Read the assets, name the outputs, and find those that are written.

        :param sources: The source of each recording, by its asset's id.
        :param scripts: Returns the script of a recording, by its asset's id and its source.
        :raises RoughyConfigurationError: If the outputs of one recording have the same name.
        :raises RoughyError: If Roughy, the ledger or the target cannot be used.
        """
        self.recordings = [Recording.of(id, source, scripts(id, source)) for id, source in sources.items()]
        self._check()
        answers = self._read_assets(self.recordings, Backoff())
        errors = [answer for answer in answers.values() if isinstance(answer, RoughyError)]
        if errors and len(errors) == len(self.recordings) and all(error.transient for error in errors):
            # Roughy is down: fail with its error, instead of a table that repeats it for each recording.
            raise errors[0]
        for recording in self.recordings:
            self._take_asset(recording, answers.get(recording.asset_id))
        self._plan(self.recordings, is_first=True)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue after the wait in the triggerer.

        :param state: What :meth:`to_dict` returned.
        :raises RoughyError: If Roughy, the ledger or the target cannot be used.
        """
        scripts = state["scripts"]
        for row in state["recordings"]:
            recording = Recording.from_dict({name: value for name, value in row.items() if name != "script"})
            recording.script = scripts[row["script"]]
            self.recordings.append(recording)
            plan(recording, self._wanted, self._template, self._source_root)
        self._check()

    def to_dict(self) -> dict[str, Any]:
        """Return the state that :meth:`resume` needs, as plain JSON."""
        # A script may be long, and is usually the same for all.
        numbers = {script: n for n, script in enumerate(dict.fromkeys(each.script for each in self.recordings))}
        rows = [{**recording.to_dict(), "script": numbers[recording.script]} for recording in self.recordings]
        return {"arguments": self._arguments, "scripts": list(numbers), "recordings": rows}

    def _check(self) -> None:
        # The Airflow connection is read here, and not in several threads at once.
        self._hook.get_conn()
        if self.ledger is not None:
            self.ledger.check()
        self._writer.check(self._template.root)

    def _read_assets(self, recordings: Sequence[Recording], backoff: Backoff) -> dict[str, Answer]:
        ids = [recording.asset_id for recording in recordings]
        answers = run_here(lambda: read_batch(self._hook, ASSET, ids, backoff=backoff)) if ids else {}
        for error in answers.values():
            if isinstance(error, RoughyAuthenticationError) and stops_batch(error):
                raise error
        return answers

    def _take_asset(self, recording: Recording, answer: Answer | None) -> None:
        if not isinstance(answer, RoughyAsset):
            if answer is None:
                recording.problem = Problem(Status.INTERRUPTED, "the state of its asset was not read", retryable=True)
            elif answer.transient:
                recording.problem = self._problem_of(answer)
            else:
                recording.problem = Problem(Status.FAILED, f"its asset cannot be read: {answer}")
            return
        recording.type, recording.extension = answer.type, answer.extension
        recording.project_id, recording.size_bytes = answer.project_id, answer.size_bytes or 0
        recording.created_at = answer.created_at
        recording.seconds = seconds_of(answer.duration_seconds)
        recording.asset_state = answer.state
        verdict = Verdict.of(ASSET, answer)
        if verdict.is_final(self._on_pending_payment):
            self._settle_asset(recording, verdict)

    def _plan(self, recordings: Sequence[Recording], *, is_first: bool = False) -> None:
        """Name the outputs of recordings whose assets were read, and find those that are written."""
        named = set()
        for recording in recordings:
            before = recording.locations
            plan(recording, self._wanted, self._template, self._source_root)
            if recording.locations != before:
                named.add(recording)
        find_collisions(self.recordings, named, may_raise=is_first)
        if self.ledger is not None:
            found = find_written(recordings, self._writer, self.ledger, self._owner)
            if found:
                self._log.info("Found %s that are written already", counted(found, "output"))

    # ---- Work

    def work(self) -> None:
        """Request and write all that is possible now. What has to be waited for is in :attr:`waiting`.

        Nothing is started after the deadline of the task's interrupt: what is missing then is interrupted.

        :raises RoughyInterruptedError: If the task was killed.
        """
        while True:
            self._request()
            if not self._write():
                break
            for kind, ids in self.waiting.items():
                self.settle(self._poll(KINDS[kind], ids))
        if self.fatal is not None:
            reason = f"not made: the batch was stopped: {self.fatal}"
            for recording in self.recordings:
                if recording.is_unfinished:
                    recording.give_up(Problem(Status.DEFERRED, reason, retryable=not self.fatal.final))
        elif not interrupt.time_left():
            for recording in self.recordings:
                recording.give_up(Problem(Status.INTERRUPTED, "not made: `timeout` was over"))

    def _poll(self, kind: Kind, ids: Sequence[str]) -> list[Verdict]:
        verdicts = run_here(lambda: poll_batch(self._hook, kind, ids))
        return [verdict for verdict in verdicts.values() if verdict.is_final(self._on_pending_payment)]

    def stop(self) -> None:
        """End the work, from a signal handler. A later try makes what is missing."""
        if self._pool is not None:
            self._pool.stop()

    @property
    def waiting(self) -> dict[str, list[str]]:
        """The ids of what is waited for, by the name of the kind."""
        return self.waiting_now()[0]

    def waiting_now(self) -> tuple[dict[str, list[str]], float | None]:
        """Return what is waited for, and when to ask again about recordings that Roughy refuses for the time being.

        :returns: The ids, by the name of the kind; and the earliest time in seconds since the epoch, or ``None``.
        """
        if self.fatal is not None:
            return {}, None
        held_until: float | None = None
        ids: dict[str, list[str]] = {ASSET.name: [], CUT.name: [], RENDER.name: []}
        now = time.time()
        for recording in self.recordings:
            if not recording.is_unfinished:
                continue
            if not recording.is_ready and recording.not_before > now:
                held_until = min(held_until or recording.not_before, recording.not_before)
            elif not recording.is_ready:
                ids[ASSET.name].append(recording.asset_id)
            if recording.cut_id and not recording.is_cut and self._cut_missing(recording):
                ids[CUT.name].append(recording.cut_id)
            if recording.render_id and not recording.is_rendered and recording.missing("render"):
                ids[RENDER.name].append(recording.render_id)
        return {kind: of_kind for kind, of_kind in ids.items() if of_kind}, held_until

    def _needs_cut(self, output: Output) -> bool:
        """Return whether an output is made from the cut, or its name has the cut's id."""
        is_of_cut = output.kind in ("captions", "timeline") or output.request.get("of") == "cut"
        return is_of_cut or (self._wanted.needs_cut and "cut_id" in self._template.fields)

    def _cut_missing(self, recording: Recording) -> list[Output]:
        """Return the outputs that need the cut, and are neither written nor given up."""
        return [output for output in recording.missing() if self._needs_cut(output)]

    def _may_cut(self, recording: Recording) -> bool:
        return recording.is_ready and not recording.cut_id and bool(self._cut_missing(recording))

    def _may_render(self, recording: Recording) -> bool:
        return (
            recording.is_ready
            and not recording.render_id
            and any(recording.is_cut or not self._needs_cut(output) for output in recording.missing("render"))
        )

    def _request(self) -> None:
        """Create the cuts and renders that can be created now."""
        items = [each for each in self.recordings if self._may_cut(each) or self._may_render(each)]

        def request(recording: Recording, on_progress: OnProgress) -> bool:
            on_progress(0, 0)
            return self._request_one(recording)

        self._run(items, request, self._log_requests)

    def _request_one(self, recording: Recording) -> bool:
        """Create the cut and the render of a recording, and return whether that worked."""
        outputs: list[Output] = []
        try:
            if self._may_cut(recording):
                outputs = self._cut_missing(recording)
                # Lineage is reported once, at the end: Airflow keeps a limited number of URIs.
                new_cut = api.create_cut(recording.asset_id, script=recording.script)
                cut = self._hook.run_for_asset(recording.asset_id, new_cut)
                recording.cut_id = cut.id
                self._settle_cut(recording, Verdict.of(CUT, cut))
            if self._may_render(recording):
                outputs = recording.missing("render")
                (output,) = outputs
                cut_id = recording.cut_id if self._wanted.render_of == "cut" else None
                new_render = api.create_render(recording.asset_id, output.request["output"], cut_id=cut_id)
                render = self._hook.run_for_asset(recording.asset_id, new_render)
                recording.render_id = render.id
                self._settle_render(recording, Verdict.of(RENDER, render))
        except RoughyAssetProcessingError as error:
            # The list of assets was wrong, or the asset is processed again.
            self._hold(recording, error, outputs, seconds=error.retry_after)
        except RoughyPaymentRequiredError as error:
            verdict = Verdict(
                recording.asset_id, Outcome.PAYMENT_REQUIRED, kind=ASSET.name, request_id=error.request_id
            )
            if verdict.is_final(self._on_pending_payment):
                self._settle_asset(recording, verdict)
            else:
                # However often: `timeout` ends it.
                self._ask_later(recording, state="pending_payment", seconds=_MAX_RETRY_AFTER)
        except RoughyAssetFailedError as error:
            recording.problem = problem_of(error)
        except RoughyError as error:
            self._fail(recording, error, outputs)
        else:
            recording.refusals = 0
            self._failed_in_a_row.clear()
            return True
        return False

    def _hold(
        self,
        recording: Recording,
        error: RoughyError,
        outputs: Sequence[Output] | None = None,
        *,
        seconds: float | None = None,
    ) -> None:
        """Ask about a recording again later: a request for it was refused, or its asset cannot be read as ready.

        :param recording: The recording.
        :param error: The error.
        :param outputs: The outputs that were asked for; by default all.
        :param seconds: Roughy's ``Retry-After``.
        """
        recording.refusals += 1
        if recording.refusals > _MAX_REFUSALS:
            # It says nothing about other recordings.
            recording.give_up(self._problem_of(error), outputs)
        else:
            pause = 2.0**recording.refusals if seconds is None else max(seconds, 1.0)
            self._ask_later(recording, state="processing", seconds=pause)

    def _ask_later(self, recording: Recording, *, state: str, seconds: float) -> None:
        recording.asset_state = state
        recording.not_before = time.time() + min(seconds, _MAX_RETRY_AFTER)

    def _write(self) -> bool:
        """Write the outputs that can be written now.

        :returns: Whether some are left, as it is time to poll cuts and renders again.
        """
        items = [
            (recording, output)
            for kind in _ORDER
            for recording in self.recordings
            for output in recording.missing(kind)
            if self._is_made(recording, output)
        ]
        ends = time.monotonic() + self._go_on_after if any(self.waiting_now()) else float("inf")
        left: list[Any] = []

        def write(item: tuple[Recording, Output], on_progress: OnProgress) -> bool:
            recording, output = item
            if time.monotonic() >= ends:
                left.append(item)
                return False
            try:
                self._writer.write(recording, output, on_progress)
            except RoughyError as error:
                self._fail(recording, error, [output])
                return False
            self._failed_in_a_row.clear()
            return True

        self._run(items, write, self._log_files)
        return bool(left) and self.fatal is None

    def _is_made(self, recording: Recording, output: Output) -> bool:
        if self._needs_cut(output) and not recording.is_cut:
            return False
        return recording.is_rendered if output.kind == "render" else recording.is_ready

    def _run(
        self,
        items: Sequence[Any],
        do: Callable[[Any, OnProgress], bool],
        log_progress: Callable[[int, int, float, int], None],
    ) -> None:
        """Call a function for each item, several at once, until an error stops the batch.

        :param items: The items.
        :param do: The function, which returns whether it succeeded.
        :param log_progress: Called with the items that have succeeded, all items, the seconds, and the bytes.
        """
        if not items or self.fatal is not None:
            return
        done: list[Any] = []

        def work(item: Any, on_progress: OnProgress) -> None:
            if self.fatal is None and interrupt.time_left() and do(item, on_progress):
                done.append(item)

        pool = self._pool = TransferPool(items, work, lambda item, error, in_a_row: True)
        try:
            pool.run(self._parallel, lambda seconds, sent: log_progress(len(done), len(items), seconds, sent))
            interrupt.check()
        except (Stopped, RoughyInterruptedError):
            raise RoughyInterruptedError("The task was killed; a retry makes only what is missing") from None
        finally:
            self._pool = None

    def _log_requests(self, done: int, total: int, seconds: float, sent: int) -> None:
        self._log.info("Requested cuts and renders of %s of %s", f"{done:,}", counted(total, "recording"))

    def _log_files(self, done: int, total: int, seconds: float, sent: int) -> None:
        self._log.info(
            "Wrote %s of %s, %s, %s/s",
            f"{done:,}",
            counted(total, "output"),
            bytes_in_words(sent),
            bytes_in_words(sent / seconds if seconds else 0.0),
        )

    def _fail(self, recording: Recording, error: RoughyError, outputs: Sequence[Output] | None) -> None:
        """Report why outputs are not made, and stop the batch if no other one could be made either.

        :param recording: The recording.
        :param error: The error.
        :param outputs: The outputs that cannot be made; ``None`` for all.
        :raises RoughyInterruptedError: If that is the error.
        """
        if isinstance(error, RoughyInterruptedError):
            raise error
        problem = self._problem_of(error)
        with self._lock:
            recording.give_up(problem, outputs)
            if may_concern_all(error) and (problem.retryable or error.final):
                self._failed_in_a_row.add(recording)
            if stops_batch(error) or len(self._failed_in_a_row) >= _MAX_FAILED_IN_A_ROW:
                self._stop(error, recording)

    # ---- Verdicts

    def settle(self, verdicts: Iterable[Verdict]) -> None:
        """Take the final verdicts on what was waited for.

        :param verdicts: The verdicts.
        :raises RoughyAuthenticationError: If the key was rejected.
        """
        of_asset = {recording.asset_id: recording for recording in self.recordings}
        of_cut = {recording.cut_id: recording for recording in self.recordings if recording.cut_id}
        of_render = {recording.render_id: recording for recording in self.recordings if recording.render_id}
        ready = []
        for verdict in verdicts:
            if verdict.kind == ASSET.name and (recording := of_asset.get(verdict.id)):
                if self._settle_asset(recording, verdict):
                    ready.append(recording)
            elif verdict.kind == CUT.name and (recording := of_cut.get(verdict.id)):
                self._settle_cut(recording, verdict)
            elif verdict.kind == RENDER.name and (recording := of_render.get(verdict.id)):
                self._settle_render(recording, verdict)
        if ready:
            self._begin_ready(ready)

    def _begin_ready(self, recordings: Sequence[Recording]) -> None:
        """Read assets that are ready now, whose type and length were not known before, and name their outputs."""
        # A failed read is not repeated here, so that other recordings go on.
        answers, read = self._read_assets(recordings, Backoff(tries=1)), []
        for recording in recordings:
            answer = answers.get(recording.asset_id)
            if isinstance(answer, RoughyError) and answer.transient:
                seconds = answer.retry_after if isinstance(answer, RoughyApiError) else None
                self._hold(recording, answer, seconds=seconds)
            else:
                self._take_asset(recording, answer)
                read.append(recording)
                if recording.problem is None and not recording.is_ready:
                    # One of the two reads is wrong, or the asset is processed again.
                    error = f"Asset {recording.asset_id} was read as ready, and then as {recording.asset_state}"
                    self._hold(recording, RoughyProtocolError(error))
        self._plan(read)

    def _stop(self, error: RoughyError, recording: Recording | None = None) -> None:
        """Make nothing more, because of an error."""
        if self.fatal is None:
            self.fatal = error
            self._log.error("Stopping the batch%s: %s", f" at {recording.source}" if recording else "", error)

    def _settle_asset(self, recording: Recording, verdict: Verdict) -> bool:
        """Take a final verdict on an asset, and return whether it is ready."""
        if verdict.outcome is Outcome.SUCCEEDED:
            recording.asset_state = "ready"
            return True
        if verdict.outcome is Outcome.PAYMENT_REQUIRED:
            recording.problem = Problem(Status.PENDING_PAYMENT, UNPAID, request_id=verdict.request_id)
        else:
            recording.problem = self._problem_of_verdict(verdict)
        return False

    def _settle_cut(self, recording: Recording, verdict: Verdict) -> None:
        if verdict.outcome is Outcome.SUCCEEDED:
            recording.is_cut = True
        elif verdict.is_final():
            recording.give_up(self._problem_of_verdict(verdict), self._cut_missing(recording))

    def _settle_render(self, recording: Recording, verdict: Verdict) -> None:
        if verdict.outcome is Outcome.SUCCEEDED:
            recording.is_rendered = True
        elif verdict.is_final():
            recording.give_up(self._problem_of_verdict(verdict), recording.missing("render"))

    def _problem_of(self, error: RoughyError) -> Problem:
        if not error.final and not interrupt.time_left():
            # The next attempt, if any, would have been after the deadline.
            request_id = error.request_id if isinstance(error, RoughyApiError) else None
            return Problem(
                Status.INTERRUPTED, f"not made: `timeout` was over; last error: {error}", request_id=request_id
            )
        return problem_of(error)

    def _problem_of_verdict(self, verdict: Verdict) -> Problem:
        try:
            verdict.raise_for_failure()
        except RoughyError as error:
            if stops_batch(error):
                self._stop(error)
            return problem_of(error)
        raise AssertionError(f"not a final outcome: {verdict.outcome}")

    # ---- Results

    def results(self) -> BatchResults:
        """Return the result of each recording."""
        return BatchResults([recording.result() for recording in self.recordings])
