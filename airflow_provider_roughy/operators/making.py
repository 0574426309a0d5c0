"""The former place of :class:`~airflow_provider_roughy.operators.derived.DerivedResourceOperator`."""

from airflow_provider_roughy.operators.derived import DerivedResourceOperator as MakingOperator

__all__ = ["MakingOperator"]
