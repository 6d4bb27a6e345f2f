"""docker-compose.yaml, read as Docker Compose reads it, as far as this file needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<word>[^}]*))?\})")


class UnsetVariableError(Exception):
    """The file needs a variable that has no value."""


def read_env(text: str) -> dict[str, str]:
    """The variables of an environment file."""
    lines = [line.partition("=") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in lines}


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """The text with its variables replaced."""

    def value(found: re.Match[str]) -> str:
        if found["escaped"]:
            return "$"
        given = env.get(found["name"], "")
        if given or not found["how"]:
            return given
        if found["how"] == ":?":
            raise UnsetVariableError(f"{found['name']}: {found['word']}")
        return found["word"]

    return VARIABLE.sub(value, text)


@dataclass(frozen=True)
class Compose:
    """The file, with all variables replaced."""

    document: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, env: Mapping[str, str]) -> Self:
        """Read a file; `env` is what the environment file has."""

        def of(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: of(each) for key, each in value.items()}
            if isinstance(value, list):
                return [of(each) for each in value]
            return interpolate(value, env) if isinstance(value, str) else value

        document: Mapping[str, Any] = of(yaml.safe_load(path.read_text()))
        return cls(document)

    @property
    def services(self) -> Mapping[str, Any]:
        """The services by name."""
        services: Mapping[str, Any] = self.document["services"]
        return services

    def command(self, service: str) -> list[str]:
        """What a service runs, its entrypoint included where the file names one."""
        found = self.services[service]
        return [*found.get("entrypoint", ()), *found["command"]]

    def healthcheck(self, service: str) -> list[str]:
        """The command that tells whether a service is healthy."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        return ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
