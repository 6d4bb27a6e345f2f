"""A real API server with the usage page, and users who may see it or not."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx

from tests.real_airflow.deployment import AirflowDeployment

USERS = ("admin", "viewer", "outsider")

AUTH_MANAGER = """
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class PageAuthManager(SimpleAuthManager):
    def is_authorized_view(self, *, access_view, user):
        return user.username != "outsider" and super().is_authorized_view(access_view=access_view, user=user)

    def is_authorized_dag(self, *, method, user, access_entity=None, details=None):
        return user.username == "admin" or (details is not None and details.id != "secret_dag")
"""

PLUGIN = "from reducto_provider.plugins.usage_page.plugin import ReductoUsagePagePlugin\n"


class PageServer(AirflowDeployment):
    """An API server whose users log in, each with the name as password. It is below `path`."""

    def __init__(self, home: Path, datasets: Any, env: dict[str, str] | None = None, path: str = "") -> None:
        home.mkdir(parents=True, exist_ok=True)
        (home / "page_auth.py").write_text(AUTH_MANAGER)
        (home / "passwords.json").write_text(json.dumps({user: user for user in USERS}))
        (home / "dags").mkdir(exist_ok=True)
        (home / "plugins").mkdir(exist_ok=True)
        if not entry_points(group="airflow.plugins", name="reducto_usage_page"):  # the package is not installed
            (home / "plugins" / "page.py").write_text(PLUGIN)
        settings = {
            "AIRFLOW__CORE__AUTH_MANAGER": "page_auth.PageAuthManager",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer,outsider:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
            "AIRFLOW__REDUCTO__USAGE_PAGE": datasets if isinstance(datasets, str) else json.dumps(datasets),
        }
        project = str(Path(__file__).parents[2])
        super().__init__(
            home,
            home / "dags",
            {**settings, "PYTHONPATH": f"{home}:{project}", **(env or {})},
            services=["api-server"],
        )
        self.url += path
        self._env["AIRFLOW__API__BASE_URL"] = self.url
        self._client.base_url = self.url

    def _start_processes(self) -> None:
        self.start_service("api-server")
        self.wait_for(self._is_healthy, self._start_timeout, "a healthy start")

    def token(self, user: str) -> str:
        """What a login gives."""
        body = {"username": user, "password": user}
        token: str = self.request("POST", "/auth/token", json=body).json()["access_token"]
        return token

    def login(self, user: str) -> dict[str, str]:
        """The headers of a user's requests to the REST API."""
        return {"Authorization": f"Bearer {self.token(user)}"}

    def client(self, user: str | None) -> httpx.Client:
        """A browser of a user, or of nobody."""
        cookies = {"_token": self.token(user)} if user else None
        return httpx.Client(base_url=f"{self.url}/reducto-usage", cookies=cookies, timeout=60, trust_env=False)
