"""The example DAGs on a real Airflow: ``make demo``."""
