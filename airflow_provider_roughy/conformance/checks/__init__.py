"""The checks, by the id of the fact that each is about."""

from __future__ import annotations

from airflow_provider_roughy.conformance.checks import account, derived, events, general, media, spec, uploads
from airflow_provider_roughy.conformance.seen import Check

#: The id of a fact -> its check, in the order in which they run, but for those that cost nothing: they run first.
CHECKS: dict[str, Check] = {
    **general.CHECKS,
    **account.CHECKS,
    **spec.CHECKS,
    **uploads.CHECKS,
    **media.CHECKS,
    **derived.CHECKS,
    **events.CHECKS,
    **media.LAST,
    **general.AT_THE_END,
}
