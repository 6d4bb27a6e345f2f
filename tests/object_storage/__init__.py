"""Object stores as users have them: protocol servers on loopback, connections of Airflow, writers that are killed."""
