"""The domain: what to ask, what came back, which days, and when a threshold is exceeded.

Nothing in here imports Airflow or HTTP.
"""
