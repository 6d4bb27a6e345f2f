"""A report becomes files. Knows paths and bytes, not Airflow's tasks."""
