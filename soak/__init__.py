"""A night in an hour: this package on a real Airflow, under faults and kills (``make soak``)."""
