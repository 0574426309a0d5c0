"""The run facet ``roughy`` of OpenLineage: the results of a task, the length of its media and their cost.

Airflow's OpenLineage provider asks an operator for its facets when the task ends. Without it, nothing here is called.
The datasets that were read and written come from Airflow's lineage (``lineage.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from airflow_provider_roughy.compat import operator_lineage

#: The most request ids in a facet.
_MAX_REQUEST_IDS = 100


@dataclass(frozen=True)
class RunFacts:
    """What a task has done.

    :param resources: How many resources there are, by what became of them.
    :param credits: What they cost, in credits; ``None`` if that is not known.
    :param media_seconds: How long they are, in seconds; ``None`` if that is not known.
    :param request_ids: The ``X-Request-Id`` of Roughy's replies about them, for Roughy's support.
    """

    resources: Mapping[str, int] = field(default_factory=dict)
    credits: int | None = None
    media_seconds: float | None = None
    request_ids: Sequence[str] = ()


def lineage_of_run(facts: RunFacts) -> Any:
    """Return the ``OperatorLineage`` of a run, which Airflow's OpenLineage provider asks the operator for.

    :param facts: What the task has done.
    :raises ImportError: If that provider is not installed.
    """
    facet = _facet_class()(
        resources=dict(facts.resources),
        credits=facts.credits,
        mediaSeconds=facts.media_seconds,
        requestIds=list(dict.fromkeys(facts.request_ids))[:_MAX_REQUEST_IDS],
    )
    return operator_lineage(run_facets={"roughy": facet})


@cache
def _facet_class() -> Any:
    import attr
    from openlineage.client.facet_v2 import RunFacet

    @attr.define
    class RoughyRunFacet(RunFacet):  # type: ignore[misc]
        """The facet. OpenLineage writes names in camel case."""

        resources: dict[str, int]
        credits: int | None
        mediaSeconds: float | None
        requestIds: list[str]

    return RoughyRunFacet
