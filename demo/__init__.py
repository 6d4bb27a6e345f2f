"""`make demo`: the example DAGs on a real Airflow, against the simulator or the live service."""
