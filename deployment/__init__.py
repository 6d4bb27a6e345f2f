"""What docker-compose.yaml comes with."""
