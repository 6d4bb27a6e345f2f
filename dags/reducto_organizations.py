"""Shared settings of the example DAGs: the organizations, from the YAML file next to this one, and the output path."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

ORGANIZATIONS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())["organizations"]

# Any location that Airflow's object storage reaches, such as s3://my_aws_connection@my-bucket/reducto.
OUTPUT_PATH = os.environ.get(
    "REDUCTO_USAGE_PATH", str(Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "reducto_usage")
)
