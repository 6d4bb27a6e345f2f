"""The package as others get it: the wheel and the source distribution."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import reducto_provider
from tests.airflows import AIRFLOW

PROJECT = Path(__file__).parents[1]


def build(kind: str, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder), str(PROJECT)],
        check=True,
        capture_output=True,
    )
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, unpacked elsewhere."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(build("sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        archive.extractall(folder, filter="data")
    [root] = folder.iterdir()
    return root


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    modules = {str(path.relative_to(PROJECT)) for path in (PROJECT / "reducto_provider").rglob("*.py")}
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    templates = (PROJECT / "reducto_provider/plugins/usage_page/templates").iterdir()
    others = {"reducto_provider/py.typed", *(str(path.relative_to(PROJECT)) for path in templates)}
    assert names == modules | others


def test_the_wheels_metadata(wheel):
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "airflow-provider-reducto"
    assert metadata["Version"] == reducto_provider.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"s3", "gcs", "azure", "openlineage"} <= set(metadata.get_all("Provides-Extra"))
    for license_file in ("LICENSE", "NOTICE"):
        assert name.replace("METADATA", f"licenses/{license_file}") in wheel.namelist()
    entry_points = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "[apache_airflow_provider]" in entry_points
    assert "reducto_provider.provider_info:get_provider_info" in entry_points
    assert "[airflow.plugins]" in entry_points
    assert "reducto_provider.plugins.usage_page.plugin:ReductoUsagePagePlugin" in entry_points


def test_the_wheel_can_be_installed_and_imported(wheel, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--target", str(tmp_path), wheel.filename], check=True)
    names = ", ".join(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in wheel.namelist()
        if name.endswith(".py") and (AIRFLOW >= (3, 1) or not name.endswith("usage_page/app.py"))
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {names}; print(reducto_provider)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout


def test_the_source_is_whole(source):
    folders = (
        *(".ci", "benchmarks", "dags", "demo", "deployment", "docs", "reducto_provider", "requirements", "simulator"),
        "tests",
    )
    files = {
        path.relative_to(PROJECT)
        for folder in folders
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    unpacked = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert files <= unpacked
    assert {str(path) for path in unpacked - files} == {
        *(
            ".airflow-registry.yaml",
            ".env.example",
            ".gitignore",
            "CHANGELOG.md",
            "LICENSE",
            "Makefile",
            "NOTICE",
            "PKG-INFO",
            "README.md",
        ),
        *("docker-compose.yaml", "noxfile.py", "pyproject.toml"),
    }


def test_the_source_passes_its_own_tests(source):
    # One file of each kind: which files there are is another test's.
    tests = "tests/usage/test_query.py tests/export/test_formats.py tests/simulator/test_simulator_usage.py"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "AIRFLOW", "MAKE"))}
    arguments = f"-p no:cacheprovider {tests} tests/test_docs.py"
    # In the environment of this suite, since making another takes minutes. Its pytest-xdist may be an old one.
    done = subprocess.run(
        ["make", "test", "READY=", f"BIN={Path(sys.executable).parent}", "WORKERS=", f"ARGS={arguments}"],
        cwd=source,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert f"rootdir: {source}" in done.stdout
