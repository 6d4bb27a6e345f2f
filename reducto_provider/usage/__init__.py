"""The domain: queries, reports, days and thresholds.

It imports neither Airflow nor HTTP.
"""
