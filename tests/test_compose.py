"""docker-compose.yaml, as far as it can be judged without a container engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[1]
COMPOSE = PROJECT / "docker-compose.yaml"


def test_it_is_valid_against_the_compose_specification():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_copies_what_is_there_and_installs_the_pinned_airflow():
    dockerfile = yaml.safe_load(COMPOSE.read_text())["services"]["airflow"]["build"]["dockerfile_inline"]
    copied = [word for line in dockerfile.splitlines() if line.startswith("COPY") for word in line.split()[2:-1]]
    assert {"pyproject.toml", "reducto_provider", "simulator"} <= set(copied)
    assert all((PROJECT / path).exists() for path in copied)
    pins = (PROJECT / "requirements/dev.txt").read_text().splitlines()
    [pin] = [pin for pin in pins if pin.startswith("apache-airflow==")]
    assert pin in dockerfile
    assert f"FROM apache/airflow:{pin.split('==')[1]}-" in dockerfile
