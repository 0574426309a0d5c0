"""The main job on a real Airflow: ``make demo``."""
