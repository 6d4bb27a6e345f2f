"""A browser on loopback: Chromium without a window, steered by Selenium."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from selenium import webdriver

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--picture", help="the file to write the picture of the usage page to")


@pytest.fixture(scope="session")
def chromium() -> tuple[str, str]:
    """The browser and what drives it."""
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("no chromium and chromedriver: on Debian, apt-get install chromium chromium-driver")
    return CHROMIUM, CHROMEDRIVER


@pytest.fixture
def open_browser(chromium: tuple[str, str]) -> Iterator[Callable[[Path], webdriver.Chrome]]:
    """Open a browser that keeps all that it writes below a folder, and is as tall as any form."""
    with ExitStack() as stack:

        def start(parent: Path) -> webdriver.Chrome:
            home = Path(tempfile.mkdtemp(dir=parent))  # a short name: there will be sockets below it
            options = webdriver.ChromeOptions()
            options.binary_location = chromium[0]
            for argument in (
                "--headless=new",
                "--no-sandbox",  # which a root has to do without
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--lang=en-US",
                "--window-size=1200,1900",
                f"--user-data-dir={home / 'profile'}",
            ):
                options.add_argument(argument)
            options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
            service = webdriver.ChromeService(
                chromium[1],
                log_output=str(home / "chromedriver.log"),
                env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
                popen_kw={"cwd": home},  # what runs in an Airflow's home ends with it at the latest
            )
            browser = webdriver.Chrome(options, service)
            stack.callback(browser.quit)
            return browser

        yield start
