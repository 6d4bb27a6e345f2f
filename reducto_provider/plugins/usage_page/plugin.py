"""The plugin's entry point. Every Airflow process imports it, so it imports nothing that only the API server needs."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any, Final

from reducto_provider.airflow_compat import PLUGINS_HAVE_VIEWS, AirflowPlugin

log = logging.getLogger(__name__)

_PREFIX: Final = "/reducto-usage"


class ReductoUsagePagePlugin(AirflowPlugin):
    """The usage page, in Airflow 3.1 and later: older versions have no place for it."""

    name = "reducto_usage_page"

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # Airflow's class has an attribute
        """The page's app; none if it can't be imported, so that it is never without Airflow's security."""
        if not PLUGINS_HAVE_VIEWS:
            return []
        try:
            from reducto_provider.plugins.usage_page.app import create_app

            return [{"app": create_app(), "url_prefix": _PREFIX, "name": "Reducto usage"}]
        except Exception:
            log.exception("There is no usage page, since its app can't be imported")
            return []

    @cached_property
    def external_views(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The page's place in the navigation. Its address is relative: a deployment may live under any path."""
        if not PLUGINS_HAVE_VIEWS:
            return []
        return [
            {
                "name": "Reducto usage",
                "href": f"{_PREFIX.removeprefix('/')}/",
                "destination": "nav",
                "url_route": "reducto-usage",
            }
        ]
