"""All that Airflow discovers about this package. Imported by every Airflow process: it imports nothing itself."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The provider's metadata, as Airflow's ``provider_info.schema.json`` describes it."""
    return {
        "package-name": "airflow-provider-reducto",
        "name": "Reducto",
        "description": "Reducto usage for Apache Airflow: export it, keep it, act on it.",
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
                        "description": "Asked for when a task names no organization; empty: the key's own.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "timeout": {
                        "label": "Timeout (seconds)",
                        "description": "For one attempt, its whole answer included. Default: 60.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "max_attempts": {
                        "label": "Attempts",
                        "description": "Requests made at most for one question when the service fails. Default: 5.",
                        "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 20},
                    },
                    "requests_per_second": {
                        "label": "Requests per second",
                        "description": "Never more, retries included, from one task. Empty: no limit.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "verify": {
                        "label": "TLS verification",
                        "description": "true, false, or the path of a CA bundle on the workers. Default: true.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "proxy": {
                        "label": "Proxy",
                        "description": "Such as http://user:password@proxy:3128. Empty: as the environment says.",
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
    }
