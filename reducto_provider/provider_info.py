"""The package's metadata for Airflow. Every Airflow process imports this module, so it imports nothing itself."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, as Airflow's ``provider_info.schema.json`` describes it."""
    return {
        "package-name": "airflow-provider-reducto",
        "name": "Reducto",
        "description": "Track, store and act on your Reducto usage.",
        "integrations": [
            {
                "integration-name": "Reducto",
                "external-doc-url": "https://docs.reducto.ai/",
                "tags": ["service"],
            }
        ],
        "connection-types": [
            {
                "connection-type": "reducto",
                "hook-class-name": "reducto_provider.hooks.reducto.ReductoHook",
                "hook-name": "Reducto",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema", "port"],
                    "relabeling": {"host": "Base URL", "password": "Studio API key"},
                    "placeholders": {
                        "host": "https://studio.reducto.ai",
                        "password": "personal key from the Studio API Keys page, not REDUCTO_API_KEY",
                    },
                },
                "conn-fields": {
                    "org_id": {
                        "label": "Organization ID",
                        "description": "Used if a task names no organization. Empty: the key's own.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "timeout": {
                        "label": "Timeout (seconds)",
                        "description": "For one attempt, including the whole response. Default: 60.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "max_attempts": {
                        "label": "Attempts",
                        "description": "Maximum number of requests for one query if the service fails. Default: 5.",
                        "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 20},
                    },
                    "requests_per_second": {
                        "label": "Requests per second",
                        "description": "Maximum rate of one task, including retries. Empty: no limit.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "verify": {
                        "label": "TLS verification",
                        "description": "true, false, or the path of a CA bundle on the workers. Default: true.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "proxy": {
                        "label": "Proxy",
                        "description": "Such as http://user:password@proxy:3128. Empty: the environment's proxy.",
                        "schema": {"type": ["string", "null"], "format": "password"},
                    },
                },
            }
        ],
        "hooks": [
            {"integration-name": "Reducto", "python-modules": ["reducto_provider.hooks.reducto"]},
        ],
        "operators": [
            {
                "integration-name": "Reducto",
                "python-modules": [
                    "reducto_provider.operators.budget",
                    "reducto_provider.operators.export",
                    "reducto_provider.operators.fleet",
                    "reducto_provider.operators.reconciliation",
                    "reducto_provider.operators.upkeep",
                ],
            },
        ],
        "sensors": [
            {"integration-name": "Reducto", "python-modules": ["reducto_provider.sensors.threshold"]},
        ],
        "triggers": [
            {
                "integration-name": "Reducto",
                "python-modules": [
                    "reducto_provider.triggers.budget",
                    "reducto_provider.triggers.levels",
                    "reducto_provider.triggers.threshold",
                ],
            },
        ],
        "extra-links": ["reducto_provider.links.studio.ReductoStudioLink"],
        "config": {
            "reducto": {
                "description": "Settings of the Reducto provider.",
                "options": {
                    "usage_page": {
                        "description": (
                            "The datasets of the usage page in Airflow's navigation (Airflow 3.1 and later): a JSON "
                            "list of objects with name, path (the output_path of the exports), and optionally conn_id, "
                            "metric (credits or requests), budgets (what each organization may use in a month) and "
                            "dag_id (whose readers alone may see the dataset)."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": '[{"name": "Usage", "path": "s3://lake/usage", "budgets": {"org_acme": 30000}}]',
                        "default": "",
                    },
                },
            },
        },
    }
