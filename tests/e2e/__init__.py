"""The services of docker-compose.yaml, run natively."""
