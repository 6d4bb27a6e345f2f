"""DAGs on real Airflow, from tests: `dagtest` makes one run quickly, `deployment` is a complete Airflow."""
