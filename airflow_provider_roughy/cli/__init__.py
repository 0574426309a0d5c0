"""The commands ``airflow roughy …`` and ``python -m airflow_provider_roughy …``.

``definition.py`` declares them, and imports nothing that a command needs to run: Airflow reads it whenever its command
line starts.
"""
