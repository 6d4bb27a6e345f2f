"""Write reports as files. This package knows paths and bytes, not Airflow tasks."""
