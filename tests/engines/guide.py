"""The marked regions of `docs/engines.md`: what it tells people to paste is what the tests run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.real_airflow.environment import PROJECT_ROOT

GUIDE = (PROJECT_ROOT / "docs/engines.md").read_text()
_PLACE = "s3a?://finops-lake/reducto"
_BLOCKS = re.findall(r"^```\w+ (\w+) (\w+)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def blocks(engine: str, kind: str, root: Path) -> list[str]:
    """The regions that are marked so, for a dataset in this folder instead."""
    found = [re.sub(_PLACE, lambda _: str(root), text) for *names, text in _BLOCKS if names == [engine, kind]]
    if not found:
        raise LookupError(f"the guide has no region {engine} {kind}")
    return found


def definition(engine: str, kind: str, root: Path, extension: str = "") -> str:
    """The one region that is marked so. Compressed files have another ending."""
    [text] = blocks(engine, kind, root)
    return text.replace(f"usage.{kind}'", f"usage.{extension}'") if extension else text


def defined(engine: str, kind: str, root: Path, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """The names that a region of Python leaves behind."""
    names = {} if names is None else names
    for text in blocks(engine, kind, root):
        exec(text, names)
    return names
