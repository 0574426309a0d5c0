"""The state of one recording whose outputs are made: what it waits for, what is written, and what has failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_provider_roughy.ingest.result import RecordingResult, Status
from airflow_provider_roughy.probe import credits_for
from airflow_provider_roughy.produce.wanted import Output
from airflow_provider_roughy.transfer.storage import location_digest, without_secrets

#: The fields that :meth:`Recording.to_dict` leaves out: ``Production.to_dict`` stores the script, and
#: :func:`~airflow_provider_roughy.produce.outputs.plan` sets the rest again.
_PLANNED = ("script", "outputs", "locations", "left_out")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something was not made.

    :param status: The status of its recording: ``failed``, ``rejected``, ``interrupted``, ``deferred`` or
        ``pending_payment``.
    :param reason: Why.
    :param retryable: Whether a retry of the task may help.
    :param request_id: The ``X-Request-Id`` of Roughy's answer.
    """

    status: str
    reason: str
    retryable: bool = False
    request_id: str | None = None


@dataclass(eq=False, slots=True)
class Recording:
    """A recording whose outputs are wanted.

    :param asset_id: Its asset.
    :param source: Where it is, as messages name it; the asset's id if that is not known.
    :param origin: A digest of where it is, with what messages leave out; empty if only its name is known.
    :param script: The script to cut by.
    :param type: ``video`` or ``audio``; ``None`` if it is not known.
    :param extension: The extension of the original, by Roughy.
    :param project_id: The project of the asset.
    :param created_at: When the asset was created.
    :param seconds: How long it is, in seconds.
    :param size_bytes: Bytes of the original.
    :param asset_state: The state of the asset.
    :param cut_id: Its cut, once it was created.
    :param is_cut: Whether the cut is completed.
    :param render_id: Its render, once it was created.
    :param is_rendered: Whether the render is completed.
    :param written: The URI of each output that is written, by its name.
    :param new: The names of those that this run has written.
    :param recorded: Bytes of each output that the ledger has with other options, by its name.
    :param newer: The asset of a newer version of it, whose outputs have the same names.
    :param problem: Why nothing more can be made of it.
    :param problems: Why an output is not made, by its name.
    :param refusals: How often Roughy has refused a cut or render of it for the time being.
    :param not_before: When to ask again after that, in seconds since the epoch.
    :param outputs: The outputs that apply to it; ``None`` while they are unknown, as its asset is neither ready
        nor has a type.
    :param locations: Where they go, by their names, as in :class:`~airflow_provider_roughy.ledger.OutputRecord`.
    :param left_out: Why other outputs are left out, by their names.
    """

    asset_id: str
    source: str
    origin: str = ""
    script: str | None = None
    type: str | None = None
    extension: str | None = None
    project_id: str | None = None
    created_at: str | None = None
    seconds: float | None = None
    size_bytes: int = 0
    asset_state: str | None = None
    cut_id: str | None = None
    is_cut: bool = False
    render_id: str | None = None
    is_rendered: bool = False
    written: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    recorded: dict[str, int] = field(default_factory=dict)
    newer: str | None = None
    problem: Problem | None = None
    problems: dict[str, Problem] = field(default_factory=dict)
    refusals: int = 0
    not_before: float = 0.0
    outputs: list[Output] | None = None
    locations: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, asset_id: str, source: str, script: str | None) -> Recording:
        """Return a recording of which nothing is known yet.

        :param asset_id: Its asset.
        :param source: Where it is; credentials in it, and the query of a web address, are only part of its digest.
        :param script: The script to cut by.
        """
        origin = location_digest(source).hex() if "/" in source else ""
        return cls(asset_id, without_secrets(source), origin=origin, script=script)

    @property
    def is_ready(self) -> bool:
        """Whether Roughy has prepared its asset."""
        return self.asset_state == "ready"

    @property
    def is_unfinished(self) -> bool:
        """Whether something of it may still be made."""
        return self.problem is None and (self.outputs is None or bool(self.missing()))

    def missing(self, *kinds: str) -> list[Output]:
        """Return the outputs that are not written and have no problem.

        :param kinds: Only these kinds; by default all.
        """
        if self.problem is not None:
            return []
        return [
            output
            for output in self.outputs or ()
            if output.name not in self.written
            and output.name not in self.problems
            and (not kinds or output.kind in kinds)
        ]

    def give_up(self, problem: Problem, outputs: Iterable[Output] | None = None) -> None:
        """Report why outputs are not made.

        :param problem: Why.
        :param outputs: The outputs; by default all that are missing.
        """
        if self.outputs is None:
            self.problem = self.problem or problem
        for output in self.missing() if outputs is None else outputs:
            self.problems[output.name] = problem

    def result(self) -> RecordingResult:
        """Return its result."""
        problems = {"": self.problem} if self.problem is not None else self.problems
        status, reasons = Status.READY.value, []
        # Statuses that can still change come first: a retry or a top-up may help.
        order = (Status.INTERRUPTED, Status.PENDING_PAYMENT, Status.DEFERRED, Status.REJECTED, Status.FAILED)
        for each in order:
            if any(problem.status == each for problem in problems.values()):
                status = each.value
        by_reason: dict[str, list[str]] = {}
        for name, problem in problems.items():
            by_reason.setdefault(problem.reason, []).append(name)
        for reason, names in by_reason.items():
            reasons.append(": ".join(filter(None, (", ".join(filter(None, names)), reason))))
        if self.is_unfinished and not problems:
            status = Status.INTERRUPTED.value
            unfinished = ", ".join(output.name for output in self.missing())
            reasons.append(": ".join(filter(None, (unfinished, "not made yet"))))
        reasons += [f"{name} left out: {why}" for name, why in self.left_out.items()]
        found = [problem for problem in problems.values() if problem.request_id]
        return RecordingResult(
            self.source,
            status,
            asset_id=self.asset_id,
            reason="; ".join(reasons) or None,
            size_bytes=self.size_bytes,
            seconds=self.seconds,
            # What was paid for is in the results of the batch.
            credits=credits_for(self.seconds) if status == Status.PENDING_PAYMENT and self.seconds else None,
            request_id=found[0].request_id if found else None,
            retryable=any(problem.retryable for problem in problems.values()),
            outputs=self.files(),
        )

    def files(self) -> dict[str, str]:
        """Return the URI of each output that is written, by its name."""
        return dict(sorted(self.written.items()))

    def to_dict(self) -> dict[str, Any]:
        """Return its state as plain JSON, without the fields of :data:`_PLANNED`."""
        row = {
            name: value for name in self.__dataclass_fields__ if name not in _PLANNED and (value := getattr(self, name))
        }
        if self.problem is not None:
            row["problem"] = asdict(self.problem)
        if self.problems:
            row["problems"] = {name: asdict(problem) for name, problem in self.problems.items()}
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Recording:
        """Read what :meth:`to_dict` returned."""
        values = dict(row)
        if values.get("problem"):
            values["problem"] = Problem(**values["problem"])
        values["problems"] = {name: Problem(**each) for name, each in values.get("problems", {}).items()}
        return cls(**values)
