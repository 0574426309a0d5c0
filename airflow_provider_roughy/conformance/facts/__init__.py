"""The facts of Roughy's API, by resource. Each has a check, or the reason why it has none."""

from __future__ import annotations

from airflow_provider_roughy.conformance.fact import Fact
from airflow_provider_roughy.conformance.facts.derived import DERIVED
from airflow_provider_roughy.conformance.facts.general import GENERAL
from airflow_provider_roughy.conformance.facts.media import MEDIA
from airflow_provider_roughy.conformance.facts.uploads import UPLOADS

#: All facts, in the order of their checks.
FACTS: tuple[Fact, ...] = (*GENERAL, *UPLOADS, *MEDIA, *DERIVED)
