"""Looking for a secret wherever it must not be."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path


def forms_of(secret: str) -> list[bytes]:
    """A secret of letters and digits as it may be written: plain, which URL-quoting leaves as it is, hex and base64."""
    data = secret.encode()
    forms = [data, data.hex().encode(), data[::-1]]
    for offset in range(3):
        # What comes before it shifts it by up to two bytes; the characters that it shares with others are left out.
        encoded = base64.b64encode(b"\0" * offset + data)
        forms.append(encoded[4 if offset else 0 : len(encoded) // 4 * 4 - 4])
    return forms


def found_in(places: Iterable[tuple[str, bytes]], secret: str) -> list[str]:
    """The names of the places that hold the secret."""
    forms = forms_of(secret)
    return [name for name, content in places if any(form in content for form in forms)]


def files_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a folder, by name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            try:
                yield str(path.relative_to(folder)), path.read_bytes()
            except FileNotFoundError:  # a database removes its own
                continue
