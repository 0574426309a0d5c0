"""HTTP: sends calls of :mod:`~airflow_provider_roughy.api` and repeats them where that is safe.

Only this package imports httpx and httpcore. Nothing is imported here: every DAG file loads ``retry`` and
``interrupt``, and only the first request loads the HTTP library.
"""
