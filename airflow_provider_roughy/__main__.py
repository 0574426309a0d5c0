"""``python -m airflow_provider_roughy``: the commands of ``airflow roughy``, on every version of Airflow."""

from __future__ import annotations

from airflow_provider_roughy.cli.parser import main

if __name__ == "__main__":
    main()
