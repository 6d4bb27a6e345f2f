"""The usage page: what the exports wrote, as HTML, in Airflow's UI and as a file."""
