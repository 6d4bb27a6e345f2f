"""Apache Airflow provider to track, store and act on Reducto usage."""

__version__ = "0.1.0"
