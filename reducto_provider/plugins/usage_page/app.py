"""
The page in Airflow's API server: a FastAPI app of which every route needs a login and access to plugins' views.

Only the API server imports this module. If Airflow's security can't be imported, neither can this module, and there is
no page.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache
from typing import Annotated, Final, TypeVar

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_access_view
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from reducto_provider.airflow_compat import conf
from reducto_provider.plugins.usage_page.pages import (
    Links,
    content_security_policy,
    message_page,
    organization_csv,
    organization_page,
    overview_page,
)
from reducto_provider.plugins.usage_page.redaction import without_credentials
from reducto_provider.plugins.usage_page.settings import OPTION, PageDataset, parse_datasets
from reducto_provider.plugins.usage_page.source import NotExportedError, PageSource, TooManyRowsError
from reducto_provider.plugins.usage_page.threads import BoundedThreads, BusyError
from reducto_provider.usage.days import today

log = logging.getLogger(__name__)

MAX_THREADS: Final = 4
"""For each dataset, so that a store that hangs holds up no other dataset."""

MAX_WAIT_SECONDS: Final = 5.0
"""How long a page waits for one of the threads."""

MAX_SECONDS: Final = 15.0
"""How long a page is waited for. Reading goes on afterwards, in a thread that counts as used until it ends."""

OVERVIEW_SECONDS: Final = 4.0
"""How long an overview waits for what has not been read, before it is shown without that."""

_EXAMPLE: Final = """[reducto]
usage_page = [{"name": "Production", "path": "s3://finops-lake/reducto", "conn_id": "my_aws_connection",
    "budgets": {"org_acme": 30000}}]"""
_MONTH: Final = re.compile(r"([1-9]\d{3})-(\d{2})", re.ASCII)

_HEADERS: Final = {
    "Content-Security-Policy": content_security_policy(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
}

_REFUSALS: Final = {
    401: ("You are not logged in", "The usage page needs a login at Airflow.", "Log in, and load the page again."),
    403: (
        "You may not see the usage page",
        "It is for those who may see plugins' views.",
        "Ask whoever manages this Airflow for that permission; with the FAB auth manager it is can read on Plugins.",
    ),
    405: ("The usage page is read-only", "It answers GET alone.", ""),
}

_Content = TypeVar("_Content")


class _Page(Exception):  # noqa: N818  # an answer instead of the one that was requested
    def __init__(self, status: int, title: str, text: str, remedy: str = "", code: str = "") -> None:
        super().__init__(title)
        self._status = status
        self._content = {"title": title, "text": text, "remedy": remedy, "code": code}

    def response(self, datasets: Sequence[tuple[int, str]] = (), chosen: int | None = None) -> Response:
        """Return the answer, with the datasets to choose from."""
        page = message_page(**self._content, datasets=datasets, chosen=chosen)
        return HTMLResponse(page, self._status, _HEADERS)


class _Dataset:
    """A dataset of the configuration, and the threads that read it."""

    def __init__(self, place: int, settings: PageDataset) -> None:
        self.place = place
        self.settings = settings
        self.source = PageSource(settings)
        self._threads = BoundedThreads(MAX_THREADS)

    async def read(self, work: Callable[[PageSource], _Content]) -> _Content:
        """Return the result of ``work``, or raise the page that says why there is none."""
        try:
            return await self._threads.run(lambda: work(self.source), wait=MAX_WAIT_SECONDS, seconds=MAX_SECONDS)
        except NotExportedError as error:
            raise _Page(404, "Not exported", str(error)) from error
        except TooManyRowsError as error:
            remedy = "Choose another dimension, or query the files."
            raise _Page(413, "Too many rows to show", str(error), remedy) from error
        except BusyError as error:
            remedy = "Load the page again in a while. If that does not help, the store may hang."
            raise _Page(503, "The usage page is busy", str(error), remedy) from error
        except TimeoutError as error:
            text = str(error) or f"The store has not answered within {MAX_SECONDS:g} seconds."
            raise _Page(
                504, "The dataset has not been read in time", text, "Load the page again in a while."
            ) from error
        except (OSError, ValueError, ImportError) as error:
            text = without_credentials(str(error))
            log.warning("The usage page could not read its dataset: %s", text)
            remedy = (
                "The path and the connection are in Airflow's configuration. The API server's log has this error too."
            )
            raise _Page(503, "The dataset can't be read", text, remedy) from None
        except Exception as error:
            log.exception("The usage page could not be made")
            remedy = "The API server's log has the traceback. Please report it."
            raise _Page(500, "The page could not be made", type(error).__name__, remedy) from error


@cache
def _configured(text: str) -> tuple[_Dataset, ...]:
    return tuple(_Dataset(place, settings) for place, settings in enumerate(parse_datasets(text)))


def _visible(request: Request, user: GetUserDep) -> list[_Dataset]:
    """Return the datasets that the user may see."""
    try:
        datasets = _configured(conf.get("reducto", "usage_page", fallback=""))
    except ValueError as error:
        text = without_credentials(str(error))
        log.warning("The usage page is not configured correctly: %s", text)
        title = "The usage page is not configured correctly"
        raise _Page(503, title, text, "Correct it like this:", _EXAMPLE) from None
    if not datasets:
        text = f"{OPTION} in Airflow's configuration names no dataset."
        raise _Page(200, "The usage page is not configured", text, "Add the output_path of your exports:", _EXAMPLE)
    return [each for each in datasets if not each.settings.dag_id or _may_read(request, user, each.settings.dag_id)]


def _may_read(request: Request, user: GetUserDep, dag_id: str) -> bool:
    try:
        # Of an Airflow in which this returns something to be awaited, nothing would have been checked.
        return requires_access_dag("GET", param_dag_id=dag_id)(request, user) is None
    except HTTPException:
        return False


_Visible = Annotated[list[_Dataset], Depends(_visible)]


def _chosen(visible: _Visible, dataset: int | None = None) -> _Dataset:
    """Return the requested dataset, by default the first. One that the user may not see is unknown."""
    if not visible:
        remedy = "Each is for the readers of its dag_id: ask for the permission to read one of these DAGs."
        raise _Page(404, "There is no dataset for you", f"{OPTION} has no dataset that you may see.", remedy)
    for each in visible:
        if dataset is None or each.place == dataset:
            return each
    raise _Page(404, "There is no such dataset", f"{OPTION} has none of this number that you may see.")


_Chosen = Annotated[_Dataset, Depends(_chosen)]


def _month(month: str | None = None) -> date | None:
    """Return the first day of a month like 2026-11."""
    if month is None:
        return None
    try:
        [(year, number)] = _MONTH.findall(month) if _MONTH.fullmatch(month) else []
        return date(int(year), int(number), 1)
    except ValueError as error:
        raise _Page(404, "There is no such month", "month must be like 2026-11.") from error


_Month = Annotated[date | None, Depends(_month)]


async def overview(chosen: _Chosen, visible: _Visible, page: int = 1) -> Response:
    """Show the organizations of a dataset."""
    day = today()
    datasets = [(each.place, each.settings.name) for each in visible]

    def render(source: PageSource) -> str:
        found = source.overview(day, OVERVIEW_SECONDS)
        return overview_page(
            found.info,
            found.summaries,
            datasets=datasets,
            page=page,
            unread=found.unread,
            unproven=found.unproven,
            today=day,
            links=Links(dataset=chosen.place),
        )

    try:
        return HTMLResponse(await chosen.read(render), headers=_HEADERS)
    except _Page as page_of_error:  # it is the way to the other datasets too
        return page_of_error.response(datasets, chosen.place)


async def organization(chosen: _Chosen, month: _Month, org_id: str, group_by: str | None = None) -> Response:
    """Show one organization."""
    day = today()

    def render(source: PageSource) -> str:
        info, usage, choices = source.organization(org_id, group_by, month, day)
        return organization_page(info, usage, choices=choices, links=Links(dataset=chosen.place))

    return HTMLResponse(await chosen.read(render), headers=_HEADERS)


async def organization_rows(chosen: _Chosen, month: _Month, org_id: str, group_by: str | None = None) -> Response:
    """Return the rows of an organization's page as CSV."""

    def render(source: PageSource) -> tuple[str, str]:
        _, usage, _ = source.organization(org_id, group_by, month, today())
        name = re.sub(r"[^A-Za-z0-9_-]", "-", f"{usage.org_id}-{usage.group_by}-{usage.month.first:%Y-%m}")
        return name[:100], organization_csv(usage)

    name, content = await chosen.read(render)
    headers = {**_HEADERS, "Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(content, media_type="text/csv; charset=utf-8", headers=headers)


async def manifest(chosen: _Chosen, org_id: str, group_by: str, day: date) -> Response:
    """Return a day's manifest."""
    content = await chosen.read(lambda source: source.manifest(org_id, group_by, day))
    return Response(content, media_type="application/json", headers=_HEADERS)


def create_app() -> FastAPI:
    """Return the app. Airflow does not authenticate plugins' apps: the dependency of all routes does."""
    app = FastAPI(
        title="Reducto usage",
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
        # These would be routes without the dependency.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.get("/")(overview)
    app.get("/organization")(organization)
    app.get("/organization.csv")(organization_rows)
    app.get("/manifest")(manifest)

    @app.exception_handler(_Page)
    async def show(request: Request, page: _Page) -> Response:
        return page.response()

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        title, text, remedy = _REFUSALS.get(error.status_code, ("There is no such page", str(error.detail), ""))
        page = message_page(title, text, remedy=remedy)
        return HTMLResponse(page, error.status_code, {**(error.headers or {}), **_HEADERS})

    @app.exception_handler(RequestValidationError)
    async def reject(request: Request, error: RequestValidationError) -> Response:
        names = ", ".join(sorted({str(each["loc"][-1]) for each in error.errors()}))
        text = f"Some parameters of the address are missing or not valid: {names}."
        return HTMLResponse(message_page("There is no such page", text), 422, _HEADERS)

    return app
