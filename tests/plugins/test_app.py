"""The page on a real API server: who sees it, what it shows, and that a store that hangs holds up nothing else."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from reducto_provider.usage.days import today
from tests.airflows import new_in
from tests.plugins.html import Page
from tests.plugins.server import PageServer

pytestmark = new_in(3, 1, "a page of a plugin in the navigation")

SECRET = "a-secret-of-the-page"
CONNECTION = f"aws://AKIAFORTHEPAGE:{SECRET}@"

DAY = today() - timedelta(days=1)
OF_ACME = {"org_id": "org_acme", "group_by": "product", "day": str(DAY), "month": f"{DAY:%Y-%m}"}


def paths() -> list[str]:
    from reducto_provider.plugins.usage_page.app import create_app

    return [route.path for route in create_app().routes]


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """A dataset."""
    from reducto_provider.export.dataset import UsageDataset
    from reducto_provider.export.formats import check_format
    from reducto_provider.export.storage import open_storage
    from reducto_provider.usage.query import UsageQuery
    from reducto_provider.usage.wire import decode_report

    folder = tmp_path_factory.mktemp("usage")
    for org_id in ("org_acme", "org <b>&"):
        query = UsageQuery(start=DAY, end=DAY, org_id=org_id)
        body = (
            f'{{"orgId":"{org_id}","startDate":"{DAY}","endDate":"{DAY}","groupBy":"product","data":['
            f'{{"date":"{DAY}","group":"=parse","credits":12.5,"requestCount":3}}]}}'
        )
        dataset = UsageDataset(open_storage(str(folder)), check_format("jsonl"), {})
        dataset.publish(decode_report(body.encode(), query), query, run="dag/run/task")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, location):
    """An API server with datasets: a good one, one of a DAG, one whose store hangs, and one that is not there."""
    hanging = tmp_path_factory.mktemp("hanging")
    (hanging / "metadata").mkdir()
    os.mkfifo(hanging / "metadata/dataset.json")  # whoever reads it waits for a writer
    datasets = [
        {"name": "Good", "path": str(location), "budgets": {"org_acme": 10}},
        {"name": "Of a DAG", "path": str(location), "dag_id": "secret_dag"},
        {"name": "Hanging", "path": str(hanging)},
        {"name": "Nowhere", "path": f"{location}/nowhere"},
        {"name": "A connection, not its id", "path": "s3://finops/usage", "conn_id": CONNECTION},
    ]
    with PageServer(tmp_path_factory.mktemp("airflow"), datasets) as server:
        yield server


class TestAccess:
    @pytest.mark.parametrize("dataset", [None, 0, 1, 99])
    def test_every_route_needs_a_login_and_the_permission(self, server, dataset):
        query = {**OF_ACME, **({} if dataset is None else {"dataset": dataset})}
        with server.client(None) as nobody, server.client("outsider") as outsider:
            for path in paths():
                assert nobody.get(path, params=query).status_code == 401, path
                assert outsider.get(path, params=query).status_code == 403, path

    def test_a_forged_cookie_is_no_login(self, server):
        with server.client(None) as nobody:
            for path in paths():
                answer = nobody.get(path, params=OF_ACME, headers={"Cookie": f"_token={server.token('viewer')}x"})
                assert answer.status_code in (401, 403), path

    @pytest.mark.parametrize("user", ["viewer", "admin"])
    def test_who_may_see_plugins_sees_every_route(self, server, user):
        with server.client(user) as client:
            for path in paths():
                answer = client.get(path, params=OF_ACME)
                assert answer.status_code == 200, (path, answer.text)
                assert answer.headers["cache-control"] == "private, no-store"
                assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")

    def test_a_dataset_of_a_dag_is_for_its_readers(self, server):
        with server.client("viewer") as viewer, server.client("admin") as admin:
            for path in paths():
                assert viewer.get(path, params={**OF_ACME, "dataset": 1}).status_code == 404, path
                assert admin.get(path, params={**OF_ACME, "dataset": 1}).status_code == 200, path
            assert "Of a DAG" in admin.get("/").text
            assert "Of a DAG" not in viewer.get("/").text

    @pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])
    def test_nothing_but_get(self, server, method):
        with server.client("admin") as admin:
            for path in paths():
                assert admin.request(method, path, params=OF_ACME).status_code == 405, path

    def test_who_is_refused_reads_why(self, server):
        with server.client(None) as nobody, server.client("outsider") as outsider, server.client("viewer") as viewer:
            assert "Log in, and load the page again." in Page(nobody.get("/").text).check_harmless().text
            assert "can read on Plugins" in Page(outsider.get("/").text).check_harmless().text
            assert "read-only" in Page(viewer.post("/").text).check_harmless().text
            assert "There is no such page" in Page(viewer.get("/x/../y").text).check_harmless().text

    @pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/page.css", "/templates/base.html"])
    def test_there_are_no_other_routes(self, server, path):
        with server.client("admin") as admin:
            assert admin.get(path).status_code == 404


class TestContent:
    def test_the_overview(self, server):
        with server.client("viewer") as viewer:
            page = Page(viewer.get("/").text).check_harmless()
        text = " ".join(page.text.split())
        assert "org <b>&" in text
        assert "Over budget since" in text or DAY.month != today().month

    def test_an_organization(self, server):
        with server.client("viewer") as viewer:
            page = Page(viewer.get("/organization", params=OF_ACME).text).check_harmless()
            other = viewer.get("/organization", params={**OF_ACME, "org_id": "org <b>&"})
        assert "12.5 credits" in " ".join(page.text.split())
        assert "org <b>&" in Page(other.text).check_harmless().text

    def test_csv(self, server):
        with server.client("viewer") as viewer:
            answer = viewer.get("/organization.csv", params={**OF_ACME, "org_id": "org <b>&"})
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["content-disposition"] == (f'attachment; filename="org--b---product-{DAY:%Y-%m}.csv"')
        assert answer.text.splitlines()[1] == f"org <b>&,product,{DAY},'=parse,12.5,3"

    def test_a_manifest(self, server):
        with server.client("viewer") as viewer:
            answer = viewer.get("/manifest", params=OF_ACME)
        assert (answer.json()["date"], answer.headers["content-type"]) == (str(DAY), "application/json")

    @pytest.mark.parametrize(
        "change",
        [
            {"org_id": "org_other"},
            {"org_id": "../../etc"},
            {"org_id": "\x00"},
            {"org_id": "x" * 3000},
            {"group_by": "feature"},
            {"group_by": "../../../.."},
            {"dataset": -1},
            {"dataset": 99},
        ],
    )
    def test_what_is_not_there(self, server, change):
        with server.client("viewer") as viewer:
            for path in ("/organization", "/organization.csv", "/manifest"):
                answer = viewer.get(path, params={**OF_ACME, **change})
                assert answer.status_code == 404, path
                Page(answer.text).check_harmless()

    @pytest.mark.parametrize(
        "month", ["2026-13", "0000-01", "0001-01", "x", "", "2026-11-01", "2026-1", "\uff12026-11"]
    )
    def test_no_month(self, server, month):
        with server.client("viewer") as viewer:
            assert viewer.get("/organization", params={**OF_ACME, "month": month}).status_code == 404

    @pytest.mark.parametrize("month", ["1000-01", "9999-12"])
    def test_a_month_without_exports(self, server, month):
        with server.client("viewer") as viewer:
            answer = viewer.get("/organization", params={**OF_ACME, "month": month})
        assert "none of its days has been exported" in Page(answer.text).check_harmless().text

    @pytest.mark.parametrize("page", [10**9, 10**30, -1, 0])
    def test_there_is_always_a_page(self, server, page):
        with server.client("viewer") as viewer:
            answer = viewer.get("/", params={"page": page})
        assert "Organizations 1 to 2 of 2" in Page(answer.text).text

    @pytest.mark.parametrize(
        ("path", "query", "name"),
        [
            ("/", {"page": "<b>"}, "page"),
            ("/", {"page": "1" * 5000}, "page"),
            ("/", {"dataset": "../0"}, "dataset"),
            ("/organization", {}, "org_id"),
            ("/manifest", {**OF_ACME, "day": "2026-02-30"}, "day"),
            ("/manifest", {**OF_ACME, "day": "../../dataset"}, "day"),
        ],
    )
    def test_parameters_that_are_not_valid_are_named(self, server, path, query, name):
        with server.client("viewer") as viewer:
            answer = viewer.get(path, params=query)
        assert answer.status_code == 422
        assert f"not valid: {name}." in Page(answer.text).check_harmless().text

    def test_no_credential_is_shown_or_logged(self, server):
        with server.client("viewer") as viewer:
            answer = viewer.get("/organization", params={**OF_ACME, "dataset": 4})
        assert answer.status_code == 503, answer.text
        assert "there is no Airflow connection 'aws://***@'" in Page(answer.text).check_harmless().text
        for text in (answer.text, server.service_log("api-server")):
            assert SECRET not in text
            assert "AKIAFORTHEPAGE" not in text

    def test_a_dataset_that_is_not_there(self, server):
        with server.client("viewer") as viewer:
            for path in paths():
                answer = viewer.get(path, params={**OF_ACME, "dataset": 3})
                assert answer.status_code == 503
                assert "has an export with this output_path succeeded?" in Page(answer.text).check_harmless().text


class TestHanging:
    def test_a_store_that_hangs_holds_up_nothing_else(self, server):
        refused = threading.Semaphore(0)
        with ThreadPoolExecutor(12) as executor, server.client("viewer") as viewer:
            futures = [
                executor.submit(viewer.get, "/organization", params={**OF_ACME, "dataset": 2}) for _ in range(12)
            ]
            for future in futures:
                future.add_done_callback(lambda _: refused.release())
            for _ in range(12 - 4):  # those for whom no thread became free
                assert refused.acquire(timeout=60)
            health = [server.request("GET", "/api/v2/monitor/health").status_code for _ in range(20)]
            assert health == [200] * 20
            assert sum(future.done() for future in futures) == 12 - 4
            assert viewer.get("/").status_code == 200  # another dataset
            answers = [future.result() for future in futures]
        assert sorted(answer.status_code for answer in answers) == [503] * 8 + [504] * 4
        assert "The usage page is busy" in next(each.text for each in answers if each.status_code == 503)


def test_below_a_path(tmp_path, location):
    """A deployment whose `[api] base_url` has a path: all addresses of the page are relative."""
    with PageServer(tmp_path / "airflow", [{"name": "a", "path": str(location)}], path="/airflow") as server:
        [plugin] = [
            each
            for each in server.request("GET", "/api/v2/plugins", headers=server.login("admin")).json()["plugins"]
            if each["name"] == "reducto_usage_page"
        ]
        assert plugin["external_views"][0]["href"] == "reducto-usage/"
        with server.client("viewer") as viewer, server.client(None) as nobody:
            overview = viewer.get("/")
            assert str(overview.url) == f"{server.url}/reducto-usage/"
            links = [attributes["href"] or "" for tag, attributes in Page(overview.text).elements if tag == "a"]
            link = next(link for link in links if link.startswith("organization?"))
            organization = viewer.get(str(overview.url.join(link)))
            page = Page(organization.text)
            links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
            forms = [attributes["action"] for tag, attributes in page.elements if tag == "form"]
            assert (forms, len(links)) == (["organization"], 3)
            for link in links:
                answer = viewer.get(str(organization.url.join(link)))
                assert answer.status_code == 200, link
                assert str(answer.url).startswith(f"{server.url}/reducto-usage/")
            answer = viewer.get(str(organization.url.join(forms[0])), params={"org_id": "org_acme", "dataset": 0})
            assert "org_acme" in Page(answer.text).check_harmless().text
            for path in paths():
                assert nobody.get(path, params=OF_ACME).status_code == 401, path


def test_nothing_is_configured(tmp_path):
    with PageServer(tmp_path / "airflow", "") as server, server.client("viewer") as viewer:
        text = Page(viewer.get("/").text).check_harmless().text
        assert "The usage page is not configured" in text
        assert '[{"name": "Production", "path": "s3://finops-lake/reducto"' in text
        with server.client(None) as nobody:
            assert nobody.get("/").status_code == 401


def test_a_configuration_that_is_wrong(tmp_path):
    with PageServer(tmp_path / "airflow", '[{"name": "<b>"}]') as server, server.client("viewer") as viewer:
        answer = viewer.get("/")
        assert answer.status_code == 503
        assert "path must be given" in Page(answer.text).check_harmless().text
