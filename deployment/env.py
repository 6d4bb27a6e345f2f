"""Write the environment file that docker-compose.yaml needs: ``python -m deployment.env .env``.

The file is `.env.example` with a new secret for every variable without a value. An existing file is not changed: it has
the only copy of the key that encrypts the deployment's connections.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / ".env.example"


def fill(example: str) -> str:
    """Return the text with a new secret for each variable without a value."""
    return re.sub(r"^(\w+)=$", lambda unset: f"{unset[1]}={_secret(unset[1])}", example, flags=re.MULTILINE)


def _secret(name: str) -> str:
    if name == "FERNET_KEY":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(32)  # hex needs no escaping in URLs and JSON


def main() -> None:
    target = Path(sys.argv[1])
    # Readable only by its owner, and never overwrites an existing file.
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(fill(EXAMPLE.read_text()))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
