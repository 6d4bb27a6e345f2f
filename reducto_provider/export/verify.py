"""
Hold a dataset against its manifests: is every day there, and as it was published?

From the command line, with a location as operators take it::

    python -m reducto_provider.export.verify s3://my_aws_connection@finops-lake/reducto
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Literal

import msgspec

from reducto_provider.export.dataset import DATASET_FILE
from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.usage.window import DayRange


@dataclass(frozen=True)
class Problem:
    """
    What is wrong with a file.

    ``missing``: a manifest tells of it, or a day between two that were exported has no manifest at all.
    ``altered``: it is not what was published. ``unknown``: no manifest tells of it, and yet it would be read.
    ``unreadable``: a manifest that can't be made out.
    """

    kind: Literal["missing", "altered", "unknown", "unreadable"]
    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.detail}"


@dataclass(frozen=True)
class Verification:
    """What a look at the whole dataset found."""

    days: int
    files: int
    problems: tuple[Problem, ...]


class _Manifest(msgspec.Struct):
    file: str | None
    bytes: int
    sha256: str | None


def verify_dataset(storage: Storage) -> Verification:
    """
    Look at every file of the dataset and every manifest.

    :raises OSError: and whatever else the store raises when it can't be read.
    """
    problems = []
    if storage.read(DATASET_FILE) is None:
        problems.append(Problem("missing", DATASET_FILE, "there is no dataset here, or it lost its description"))
    files = set(storage.names("data"))
    manifests = [name for name in storage.names("metadata") if name != DATASET_FILE]
    expected = 0
    for name in manifests:
        content = storage.read(name)
        try:
            manifest = msgspec.json.decode(content or b"", type=_Manifest)
        except ValueError as error:
            problems.append(Problem("unreadable", name, str(error)))
            continue
        if manifest.file is None:
            continue
        expected += 1
        if manifest.file not in files:
            problems.append(Problem("missing", manifest.file, f"{name} tells of {manifest.bytes} bytes"))
            continue
        files.discard(manifest.file)
        found = storage.read(manifest.file) or b""
        if hashlib.sha256(found).hexdigest() != manifest.sha256:
            problems.append(
                Problem("altered", manifest.file, f"{len(found)} bytes, not the {manifest.bytes} published")
            )
    problems += [Problem("unknown", name, "no manifest tells of it") for name in sorted(files)]
    problems += _gaps(manifests)
    return Verification(days=len(manifests), files=expected, problems=tuple(problems))


def _gaps(manifests: list[str]) -> Iterator[Problem]:
    """Days without a manifest between the first and the last of an organization's dimension."""
    for folder, names in groupby(sorted(manifests), key=lambda name: name.rpartition("/")[0]):
        days = {date.fromisoformat(name.rpartition("/dt=")[2].removesuffix(".json")) for name in names}
        for day in DayRange(min(days), max(days)).days():
            if day not in days:
                yield Problem("missing", f"{folder}/dt={day}.json", "the day was never exported")


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong and what was looked at; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m reducto_provider.export.verify", description=main.__doc__)
    parser.add_argument("location", help="the dataset's output_path")
    parser.add_argument("--conn-id", help="the Airflow connection for the object store")
    options = parser.parse_args(arguments)
    found = verify_dataset(open_storage(options.location, options.conn_id))
    for problem in found.problems:
        print(problem)
    print(f"{found.days} days, {found.files} files, {len(found.problems)} problems")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
