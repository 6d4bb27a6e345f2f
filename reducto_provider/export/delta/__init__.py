"""Write reports to a Delta table, with the package ``deltalake``: no Spark, no catalog."""
