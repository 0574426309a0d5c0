"""A soak test: this package on a real Airflow for an hour, under faults and kills (``make soak``)."""
