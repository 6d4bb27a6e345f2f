"""Remove credentials from errors of stores and of the configuration, before they are shown or logged."""

from __future__ import annotations

import re
from typing import Final

from reducto_provider.airflow_compat import redact

_CREDENTIALS: Final = (
    (re.compile(r"(?<=://)[^/\s@'\"]*:[^\s@'\"]*(?=@)"), "***"),
    # Signed URLs, as a store's client has them in its errors.
    (re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*"), r"\1?***"),
    (
        re.compile(r"((?:key|secret|token|password|signature|\bsig)(?:\s*=|[\"']\s*[=:])\s*[\"']?)[^\s;,&\"']+", re.I),
        r"\1***",
    ),
)


def without_credentials(text: str) -> str:
    """Return a text without what looks like a credential, and without the secrets that Airflow masks in logs."""
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return str(redact(text))
