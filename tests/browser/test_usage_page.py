"""The usage page in Airflow 3.1 and later as a browser shows it, light and dark, wide and narrow."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from reducto_provider.export.dataset import UsageDataset
from reducto_provider.export.formats import check_format
from reducto_provider.export.storage import open_storage
from reducto_provider.usage.days import today
from reducto_provider.usage.query import UsageQuery
from reducto_provider.usage.wire import decode_report
from tests.airflows import new_in
from tests.object_storage.s3server import S3Server
from tests.plugins.server import PageServer

pytestmark = new_in(3, 1, "a page of a plugin in the navigation")

AXE = Path(os.environ.get("AXE", Path(__file__).parents[2] / ".cache/axe/node_modules/axe-core/axe.min.js"))
SIZES = (400, 1500)
THEMES = ("light", "dark")
HOSTILE = '<script>alert("x")</script> & an organization with quite a long name'


def publish(location: str, org_id: str, group_by: str, groups: list[str], scale: float, absent: set[date]) -> float:
    """Publish ten weeks of usage, without some days. Return the credits of this month."""
    values, last = random.Random(f"{org_id}{group_by}"), today() - timedelta(days=1)
    days = [last - timedelta(days=back) for back in range(70, -1, -1)]
    dataset = UsageDataset(open_storage(location), check_format("jsonl"), {})
    month = 0.0
    gaps = [place for place, day in enumerate(days) if day in absent]
    for start, end in zip([0, *(place + 1 for place in gaps)], [*gaps, len(days)], strict=True):
        if not (some := days[start:end]):
            continue
        usage = [
            {"date": str(day), "group": group, "credits": round(scale * values.random(), 1), "requestCount": 40}
            for day in some
            for group in groups
            if day.weekday() < 5 or group == groups[0]
        ]
        query = UsageQuery(start=some[0], end=some[-1], org_id=org_id, group_by=group_by)
        echo = {"orgId": org_id, "startDate": str(some[0]), "endDate": str(some[-1]), "groupBy": group_by}
        report = decode_report(json.dumps({**echo, "data": usage}).encode(), query)
        dataset.publish(report, query, run="reducto_usage/scheduled/export_usage")
        month += sum(row["credits"] for row in usage if row["date"] >= f"{today():%Y-%m}")
    return month


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    folder = tmp_path_factory.mktemp("usage")
    absent = {today() - timedelta(days=back) for back in (12, 13)}
    products = ["parse", "extract", "split"]
    for org_id, scale, gap in (
        ("org_acme", 900, set()),
        ("org_globex", 300, absent),
        ("org_initech", 80, set()),
        (HOSTILE, 50, set()),
    ):
        publish(str(folder), org_id, "product", products, scale, gap)
    publish(str(folder), "org_acme", "feature", [f"feature {number}" for number in range(13)] + ["=<b>1"], 200, set())
    month = today().day
    budgets = {"org_acme": 1400 * month, "org_globex": 350 * month, "org_initech": 20 * max(1, month - 1)}
    datasets = [
        {"name": "Production", "path": str(folder), "budgets": budgets},
        {"name": "Staging", "path": f"{folder}/none"},
    ]
    # Below a path, as behind a proxy. The picture is made without one.
    with PageServer(tmp_path_factory.mktemp("airflow"), datasets, path="/airflow") as server:
        yield server


class Frame:
    """Airflow's page with the usage page in its frame, of a size and in a theme."""

    def __init__(self, browser: Chrome, server: PageServer, width: int, theme: str) -> None:
        self.browser = browser
        self._metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", self._metrics)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(f"{server.url}/api/v2/version")
        browser.add_cookie({"name": "_token", "value": server.token("viewer"), "path": "/"})
        browser.get(server.url)
        browser.execute_script("localStorage.setItem('theme', arguments[0])", theme)

    def wait(self, condition: Callable[[Chrome], Any]) -> Any:
        return WebDriverWait(self.browser, 60, ignored_exceptions=[StaleElementReferenceException]).until(condition)

    def open(self, server: PageServer) -> None:
        self.browser.get(f"{server.url}/plugin/reducto-usage")
        frame = self.wait(lambda browser: browser.find_elements(By.TAG_NAME, "iframe"))[0]
        self.browser.switch_to.frame(frame)
        self.see("h1")

    def see(self, selector: str) -> Any:
        return self.wait(lambda browser: browser.find_elements(By.CSS_SELECTOR, selector))[0]

    def go(self, selector: str, expected: str) -> None:
        """Follow a link or press a button, and wait for a page with a text."""
        self.see(selector).click()
        self.wait(lambda browser: expected in browser.find_element(By.TAG_NAME, "main").text)

    def save(self, file: Path, height: int) -> None:
        """Save a picture of Airflow's page."""
        self.browser.switch_to.default_content()
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**self._metrics, "height": height})
        self.browser.save_screenshot(str(file))

    def check(self, name: str, tmp_path: Path) -> None:
        """Check what is shown in the frame: no horizontal scrolling, no console error, no violation that axe finds."""
        too_wide = self.browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert too_wide <= 0
        self.browser.execute_script(AXE.read_text())
        run = "axe.run(document).then(found => arguments[0](found.violations), error => arguments[0](String(error)))"
        assert self.browser.execute_async_script(run) == []
        self.browser.save_screenshot(str(Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{name}.png"))


def errors(browser: Chrome) -> list[str]:
    """Return what the frame's documents said to the console."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    found = [entry["params"] for entry in entries if entry["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    return [str(each) for each in found if "reducto-usage/" in str(each)]


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: npm install --prefix .cache/axe axe-core@4.11.0")
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", SIZES)
def test_the_page(
    server: PageServer, open_browser: Callable[[Path], Chrome], tmp_path: Path, width: int, theme: str
) -> None:
    browser = open_browser(server.home)
    browser.execute_cdp_cmd("Log.enable", {})
    page = Frame(browser, server, width, theme)
    page.open(server)
    assert page.see("h1").text == "Production"
    assert HOSTILE in page.see("main").text
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if theme == "light" else "rgb(20, 23, 28)")
    page.check(f"overview-{theme}-{width}", tmp_path)

    page.go("a[href*='org_id=org_acme']", "The largest groups first")
    page.check(f"organization-{theme}-{width}", tmp_path)

    Select(page.see("select[name=group_by]")).select_by_value("feature")
    page.go("button", "other groups")
    page.check(f"features-{theme}-{width}", tmp_path)
    Select(page.see("select[name=month]")).select_by_index(1)
    page.go("button", f"{(today().replace(day=1) - timedelta(days=1)):%B %Y}")

    page.go("a[href^='./']", "closest to their budgets")
    Select(page.see("select[name=dataset]")).select_by_value("1")
    page.go("button", "has an export with this output_path succeeded?")
    page.check(f"failed-{theme}-{width}", tmp_path)
    Select(page.see("select[name=dataset]")).select_by_value("0")
    page.go("button", "closest to their budgets")
    # The last one is a 503, which the browser reports.
    assert [error for error in errors(browser) if "503" not in error] == []


@pytest.fixture
def example(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageServer]:
    """A server with a dataset in an object store, which is fit for the docs."""
    store = S3Server()
    try:
        store.bystander.create_bucket(Bucket="finops-lake")
        # A connection of its own, since a process keeps the stores that it has opened by their connections.
        monkeypatch.setenv("AIRFLOW_CONN_FINOPS", store.connection())
        absent = {today() - timedelta(days=back) for back in (16, 17)}
        budgets = {}
        for org_id, scale, share in (
            ("org_acme", 900, 1.15),
            ("org_globex", 300, 0.97),
            ("org_umbrella", 420, 0.7),
            ("org_initech", 60, 0.4),
        ):
            gap = absent if org_id == "org_umbrella" else set()
            location, products = "s3://finops@finops-lake/reducto", ["parse", "extract", "split"]
            used = publish(location, org_id, "product", products, scale, gap)
            budgets[org_id] = round(used / share, -2) or 1000
        dataset = {"name": "Production", "path": "s3://finops-lake/reducto", "conn_id": "finops", "budgets": budgets}
        env = {"AIRFLOW_CONN_FINOPS": store.connection()}
        with PageServer(tmp_path_factory.mktemp("airflow"), [dataset], env) as server:
            yield server
    finally:
        store.close()


def test_the_picture(
    example: PageServer, open_browser: Callable[[Path], Chrome], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Make the first picture of README and docs; `make picture` keeps it."""
    page = Frame(open_browser(example.home), example, 1200, "light")

    def is_complete(browser: Chrome) -> bool:
        page.open(example)
        is_being_read = browser.find_elements(By.CSS_SELECTOR, ".note")
        return not is_being_read and len(browser.find_elements(By.CSS_SELECTOR, "ul.cards > li")) == 4

    page.wait(is_complete)
    assert "s3://finops-lake/reducto" in page.see("main").text
    file = Path(pytestconfig.getoption("--picture", None) or tmp_path / "usage-page.png")
    page.save(file, 780)
    assert 10_000 < file.stat().st_size < 150_000
