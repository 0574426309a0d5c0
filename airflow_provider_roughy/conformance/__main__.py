"""``python -m airflow_provider_roughy.conformance``."""

from __future__ import annotations

import sys

from airflow_provider_roughy.conformance.command import main

if __name__ == "__main__":
    sys.exit(main())
