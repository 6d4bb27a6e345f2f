"""Apache Airflow provider for Reducto usage: export it, keep it, act on it."""

__version__ = "0.1.0"
