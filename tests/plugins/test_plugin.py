"""The entry point: what registers the page, and what it costs who does not show it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.airflows import gone_in, new_in

PROJECT = Path(__file__).parents[2]

STUB = """
import json, sys
import airflow.plugins_manager
from tests.airflow_sdk import BaseOperator
before = set(sys.modules)
from reducto_provider.plugins.usage_page.plugin import ReductoUsagePagePlugin
plugin = ReductoUsagePagePlugin()
loaded = sorted(set(sys.modules) - before)
print("\\n" + json.dumps(loaded))
"""

CLOSED = """
import json, sys
sys.modules["airflow.api_fastapi.core_api.security"] = None
from reducto_provider.plugins.usage_page.plugin import ReductoUsagePagePlugin
print("\\n" + json.dumps(ReductoUsagePagePlugin().fastapi_apps))
"""


def run(code: str, home: Path) -> object:
    env = {**os.environ, "AIRFLOW_HOME": str(home), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_stub_loads_nothing_of_the_page(tmp_path):
    loaded = run(STUB, tmp_path)
    assert "reducto_provider.plugins.usage_page.plugin" in loaded
    heavy = ("fastapi", "pyarrow", "fsspec", "jinja2", "aiohttp", "reducto_provider.export", "reducto_provider.hooks")
    pages = [name for name in loaded if name.startswith("reducto_provider.plugins.usage_page.")]
    assert pages == ["reducto_provider.plugins.usage_page.plugin"]
    assert [name for name in loaded if name.startswith(heavy)] == []


@new_in(3, 1, "a page of a plugin in the navigation")
def test_without_airflow_s_security_there_is_no_page(tmp_path):
    assert run(CLOSED, tmp_path) == []


@gone_in(3, 1, "no page of a plugin in the navigation")
def test_older_airflows_register_nothing():
    from reducto_provider.plugins.usage_page.plugin import ReductoUsagePagePlugin

    plugin = ReductoUsagePagePlugin()
    assert (plugin.fastapi_apps, plugin.external_views) == ([], [])


@new_in(3, 1, "a page of a plugin in the navigation")
def test_every_route_depends_on_airflow_s_security():
    from fastapi.routing import APIRoute

    from reducto_provider.plugins.usage_page.app import create_app

    app = create_app()
    assert all(type(route) is APIRoute for route in app.routes)  # none of FastAPI's own, which have no dependency
    for route in app.routes:
        assert route.methods == {"GET"}
        first = route.dependant.dependencies[0].call
        assert first.__qualname__ == "requires_access_view.<locals>.inner"
    assert {route.path for route in app.routes} == {"/", "/organization", "/organization.csv", "/manifest"}
