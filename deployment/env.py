"""Write the environment file that docker-compose.yaml needs: ``python -m deployment.env .env``.

It is `.env.example` with a new secret for every variable that has no value there. A file that exists is left as it is:
it holds the only copy of the key that encrypts the deployment's connections.
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
    """The file with a secret wherever a variable has no value."""
    return re.sub(r"^(\w+)=$", lambda unset: f"{unset[1]}={_secret(unset[1])}", example, flags=re.MULTILINE)


def _secret(name: str) -> str:
    if name == "FERNET_KEY":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(32)  # hex goes into URLs and JSON as it is


def main() -> None:
    target = Path(sys.argv[1])
    # Created readable for its owner alone, and never in the place of another.
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(fill(EXAMPLE.read_text()))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
