"""The page's HTML, made from its figures. All text is escaped by the templates."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reducto_provider.plugins.usage_page import charts, words
from reducto_provider.plugins.usage_page.organization import OrganizationUsage
from reducto_provider.plugins.usage_page.overview import OrganizationSummary, Totals
from reducto_provider.usage.report import format_decimal

PAGE_SIZE: Final = 25

_FOLDER: Final = Path(__file__).parent
# At the start of a cell. In some countries cells end at a semicolon, and formulas begin with wide characters.
_FORMULA: Final = re.compile(r"(^|[;\t\r\n])(\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")


@dataclass(frozen=True, kw_only=True)
class Links:
    """
    The page's own addresses, relative to each of its pages: a deployment may live under any path.

    :param dataset: the dataset's place in the configuration.
    """

    dataset: int

    def overview(self, page: int = 1) -> str:
        """Return the address of a page of the overview."""
        return f"./?{urlencode({'dataset': self.dataset, 'page': page})}"

    def organization(self, org_id: str) -> str:
        """Return the address of an organization's page."""
        return f"organization?{urlencode({'dataset': self.dataset, 'org_id': org_id})}"

    def csv(self, usage: OrganizationUsage) -> str:
        """Return the address of what an organization's page shows, as CSV."""
        return f"organization.csv?{self._of(usage)}"

    def manifest(self, usage: OrganizationUsage, day: date) -> str:
        """Return the address of a day's manifest."""
        return f"manifest?{self._of(usage)}&{urlencode({'day': day})}"

    def _of(self, usage: OrganizationUsage) -> str:
        month = f"{usage.month.first:%Y-%m}"
        query = {"dataset": self.dataset, "org_id": usage.org_id, "group_by": usage.group_by, "month": month}
        return urlencode(query)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the form of an organization's page offers."""

    dimensions: Sequence[str]
    months: Sequence[date]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """
    What the pages say of a dataset.

    :param filters: of its exports: usage that they leave out is in no figure.
    :param unused_budgets: the organizations that have a budget, but no export here. Only the overview says so.
    """

    name: str
    location: str
    filters: dict[str, Sequence[str]]
    read_at: datetime
    unused_budgets: Sequence[str] = ()


def overview_page(
    dataset: DatasetInfo,
    summaries: Sequence[OrganizationSummary],
    *,
    datasets: Sequence[tuple[int, str]],
    page: int,
    unread: int,
    unproven: int,
    today: date,
    links: Links,
) -> str:
    """
    Return a page of the overview.

    :param summaries: all of them, in their order.
    :param datasets: the datasets to choose from: places and names.
    :param unread: the number of organizations that are still being read.
    :param unproven: the number of those whose figures are what the index holds, and are still being checked.
    """
    pages = max(1, -(-len(summaries) // PAGE_SIZE))
    page = min(max(page, 1), pages)
    start = (page - 1) * PAGE_SIZE
    return _render(
        "overview.html",
        dataset=dataset,
        summaries=summaries[start : start + PAGE_SIZE],
        start=start,
        total=len(summaries),
        datasets=datasets,
        page=page,
        pages=pages,
        unread=unread,
        unproven=unproven,
        totals=Totals.of(summaries),
        today=today,
        links=links,
    )


def organization_page(dataset: DatasetInfo, usage: OrganizationUsage, *, choices: Choices, links: Links) -> str:
    """Return an organization's page."""
    return _render("organization.html", dataset=dataset, usage=usage, choices=choices, links=links)


def message_page(
    title: str,
    text: str,
    *,
    remedy: str = "",
    code: str = "",
    datasets: Sequence[tuple[int, str]] = (),
    chosen: int | None = None,
) -> str:
    """
    Return a page that says what is the matter, and what to do.

    :param datasets: the datasets to choose from: places and names.
    """
    return _render("message.html", title=title, text=text, remedy=remedy, code=code, datasets=datasets, chosen=chosen)


def file_page(
    dataset: DatasetInfo,
    summaries: Sequence[OrganizationSummary],
    usages: Sequence[OrganizationUsage | str],
    *,
    today: date,
) -> str:
    """
    Return the overview and the organizations' pages as one file, whose links stay within it.

    :param usages: one for each of the summaries, or why there is none.
    """
    return _render(
        "file.html",
        dataset=dataset,
        summaries=summaries,
        totals=Totals.of(summaries),
        usages=usages,
        today=today,
        links=None,
    )


def organization_csv(usage: OrganizationUsage) -> str:
    """
    Return the rows of an organization's page as CSV.

    Text that a spreadsheet would take for a formula is preceded by an apostrophe.
    """
    content = io.StringIO()
    writer = csv.writer(content, quoting=csv.QUOTE_MINIMAL, lineterminator="\r\n")
    writer.writerow(("org_id", "group_by", "date", "group", "credits", "request_count"))
    for row in usage.rows:
        credits = "" if row.credits is None else format_decimal(row.credits)
        group = "" if row.group is None else _harmless(row.group)
        writer.writerow((_harmless(usage.org_id), usage.group_by, row.date, group, credits, row.request_count))
    return content.getvalue()


def content_security_policy() -> str:
    """Return the policy of the pages: nothing is loaded, and only their own style and script are used."""
    hashes = [b64encode(hashlib.sha256(_asset(name).encode()).digest()).decode() for name in ("page.css", "theme.js")]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; form-action 'self'; "
        "frame-ancestors 'self'; base-uri 'none'"
    )


def _harmless(text: str) -> str:
    return _FORMULA.sub(r"\1'\2", text)


def _day_titles(usage: OrganizationUsage) -> list[str]:
    titles = []
    for day in usage.days:
        amount = f"{words.number(day.amount)} {usage.metric}" if day.exported else day.status
        titles.append(f"{words.day(day.day)}: {amount}")
    return titles


def _render(template: str, **context: Any) -> str:
    return _environment().get_template(template).render(**context)


@cache
def _asset(name: str) -> str:
    return (_FOLDER / "templates" / name).read_text()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "style": Markup(_asset("page.css")),  # noqa: S704  # files of this package
        "script": Markup(_asset("theme.js")),  # noqa: S704
        "words": words,
        "charts": charts,
        "day_titles": _day_titles,
    }
    return environment
