"""Which locations an export accepts. Those in object stores are in tests/object_storage/test_locations.py."""

from __future__ import annotations

import pytest

from reducto_provider.export.locations import check_output_path


@pytest.mark.parametrize(
    "path",
    ["/data/usage", "/data/usage/", "file:///data/usage", "s3://bucket/usage", "gs://conn@bucket/a b", "abfs://c"],
)
def test_what_means_the_same_on_every_worker(path):
    assert check_output_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        *("", "usage", "./usage", "../usage", "~/usage", "data/usage", " /data", None, 5, b"/data", ["/data"]),
        # What a template puts into a path could lead out of it.
        *("/data/../etc", "/data/..", "s3://bucket/a/../../b", "file:///data/../etc"),
        # Of these the first part is taken for a host, and the rest for a folder below wherever the worker runs.
        *("file://usage", "file://data/usage", "local://data/usage", "file:data/usage"),
    ],
    ids=repr,
)
def test_other_paths_are_refused(path):
    with pytest.raises(ValueError, match=r"output_path must (be|not contain)") as error:
        check_output_path(path)

    assert repr(path) in str(error.value)
