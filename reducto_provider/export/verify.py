"""
Verify a dataset of files or a Delta table: that every day is there, as it was published.

From the command line, with a location as the operators accept it::

    python -m reducto_provider.export.verify s3://my_aws_connection@finops-lake/reducto
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Literal

import msgspec

from reducto_provider.export.locations import location_argument
from reducto_provider.export.manifest import DATASET_FILE, holds_table, parse_manifest_name
from reducto_provider.export.sink import storage_errors
from reducto_provider.export.storage import Storage, open_storage
from reducto_provider.usage.checks import INVALID_JSON
from reducto_provider.usage.days import DayRange


@dataclass(frozen=True)
class Problem:
    """
    A problem of one file.

    ``missing``: a manifest lists the file but it is not there, or days between two exported ones have no manifest.
    ``altered``: its content is not what was published. ``unknown``: no manifest lists it, and yet engines would read
    it; or a manifest that belongs to no day. ``unreadable``: a manifest that can't be decoded or names another day's
    file. In a table, the same of a day's rows and of the record of exported days.
    """

    kind: Literal["missing", "altered", "unknown", "unreadable"]
    name: str
    detail: str

    def __str__(self) -> str:
        """Return one printable line, whatever characters a name contains."""
        text = f"{self.kind}: {self.name}: {self.detail}"
        return text if text.isprintable() else repr(text)[1:-1]


@dataclass(frozen=True)
class Verification:
    """The result of verifying a whole dataset."""

    days: int
    files: int
    problems: tuple[Problem, ...]


_OTHER_NAME = re.compile(r"metadata/org_id=[^/]+/group_by=[^/]+/(\.reported-\d{4}|index\.json)", re.ASCII)


class _Manifest(msgspec.Struct):
    file: str | None
    bytes: int
    sha256: str | None


_MANIFEST = msgspec.json.Decoder(_Manifest)


def verify_dataset(storage: Storage) -> Verification:
    """
    Check every file of the dataset and every manifest.

    :raises OSError: also anything else the store raises when it can't be read.
    """
    problems = []
    if storage.read(DATASET_FILE) is None:
        problems.append(Problem("missing", DATASET_FILE, "there is no dataset here, or it lost its description"))
    files = set(storage.names("data"))
    manifests: dict[str, list[date]] = {}
    expected = 0
    for name in storage.names("metadata"):
        if name == DATASET_FILE or _OTHER_NAME.fullmatch(name):
            continue
        partition = parse_manifest_name(name)
        if partition is None:
            problems.append(Problem("unknown", name, "it is not the manifest of any day"))
            continue
        folder, day = partition
        manifests.setdefault(folder, []).append(day)
        content = storage.read(name)
        try:
            manifest = _MANIFEST.decode(content or b"")
        except INVALID_JSON as error:
            problems.append(Problem("unreadable", name, str(error)))
            continue
        if manifest.file is None:
            continue
        expected += 1
        if not manifest.file.startswith(f"data/{folder}/dt={day}/"):
            detail = f"it names a file that is not of its day: {manifest.file!r:.200}"
            problems.append(Problem("unreadable", name, detail))
            continue
        if manifest.file not in files:
            problems.append(Problem("missing", manifest.file, f"{name} lists it with {manifest.bytes} bytes"))
            continue
        files.discard(manifest.file)
        found = storage.read(manifest.file) or b""
        if hashlib.sha256(found).hexdigest() != manifest.sha256:
            problems.append(
                Problem("altered", manifest.file, f"{len(found)} bytes, not the {manifest.bytes} published")
            )
    problems += [Problem("unknown", name, "no manifest lists it") for name in sorted(files)]
    problems += _gaps(manifests)
    return Verification(days=sum(map(len, manifests.values())), files=expected, problems=tuple(problems))


def _gaps(manifests: Mapping[str, list[date]]) -> Iterator[Problem]:
    """Yield the days without a manifest between the first and the last of an organization's dimension."""
    for folder, days in sorted(manifests.items()):
        for gap in gaps(days):
            detail = "the day was never exported" if gap.length == 1 else f"{gap} were never exported"
            yield Problem("missing", f"metadata/{folder}/dt={gap.first}.json", detail)


def gaps(days: Iterable[date]) -> Iterator[DayRange]:
    """Yield the ranges between the first and the last of ``days`` that are not among them."""
    for before, after in pairwise(sorted(days)):
        if after - before > timedelta(days=1):
            yield DayRange(before + timedelta(days=1), after - timedelta(days=1))


def main(arguments: list[str] | None = None) -> int:
    """Print the problems and what was checked. Return 1 if there are problems, 2 if nothing could be checked."""
    parser = argparse.ArgumentParser(prog="python -m reducto_provider.export.verify", description=main.__doc__)
    parser.add_argument("location", type=location_argument, help="the dataset's output_path")
    parser.add_argument("--conn-id", help="the Airflow connection for the object store")
    options = parser.parse_args(arguments)
    try:
        found = _verify(options.location, options.conn_id)
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    for problem in found.problems:
        print(problem)
    print(f"{found.days} days, {found.files} files, {len(found.problems)} problems")
    return 1 if found.problems else 0


def _verify(location: str, conn_id: str | None) -> Verification:
    storage = open_storage(location, conn_id)
    with storage_errors(f"could not read {storage.location()}"):
        if not holds_table(storage):
            return verify_dataset(storage)
        from reducto_provider.export.delta.verify import verify_table

        return verify_table(location, conn_id)


if __name__ == "__main__":
    sys.exit(main())
