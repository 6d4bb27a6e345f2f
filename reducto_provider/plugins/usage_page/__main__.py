"""
Write the usage page of a dataset as one HTML file.

From the command line, with a location as the operators accept it::

    python -m reducto_provider.plugins.usage_page s3://my_aws_connection@finops-lake/reducto -o usage.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import get_args

from reducto_provider.export.locations import location_argument
from reducto_provider.plugins.usage_page.organization import OrganizationUsage
from reducto_provider.plugins.usage_page.overview import sort_summaries
from reducto_provider.plugins.usage_page.pages import file_page
from reducto_provider.plugins.usage_page.redaction import without_credentials
from reducto_provider.plugins.usage_page.settings import PageDataset, check_budget
from reducto_provider.plugins.usage_page.source import NotExportedError, PageSource, TooManyRowsError
from reducto_provider.usage.days import today
from reducto_provider.usage.report import Metric


def render_file(dataset: PageDataset, day: date) -> str:
    """
    Return the page of a dataset as one HTML document, with every organization.

    :param day: the current day.
    :raises UsageReadError: if there is no dataset that can be read.
    :raises OSError: if the store can't be read.
    """
    source = PageSource(dataset)
    reader = source.open()
    org_ids = reader.org_ids()
    found = [source.summary(reader, org_id, day) for org_id in org_ids]
    summaries = sort_summaries(summary for summary in found if summary is not None)
    usages = [_usage(source, summary.org_id, day) for summary in summaries]
    return file_page(source.info(reader, org_ids), summaries, usages, today=day)


def _usage(source: PageSource, org_id: str, day: date) -> OrganizationUsage | str:
    try:
        return source.organization(org_id, None, None, day)[1]
    except (NotExportedError, TooManyRowsError, ValueError, OSError, ImportError) as error:
        return without_credentials(str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the usage page of a dataset as one HTML file."""
    parser = argparse.ArgumentParser(prog="python -m reducto_provider.plugins.usage_page", description=main.__doc__)
    parser.add_argument("path", type=location_argument, help="the dataset's output_path")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the HTML file")
    parser.add_argument("--conn-id", help="the Airflow connection for the object store")
    parser.add_argument("--name", default="Reducto usage", help="the page's title")
    parser.add_argument("--metric", default="credits", choices=get_args(Metric))
    parser.add_argument("--budget", action="append", default=[], metavar="ORG=AMOUNT", help="of a month; repeatable")
    options = parser.parse_args(arguments)
    try:
        dataset = PageDataset(
            name=options.name,
            path=options.path,
            conn_id=options.conn_id,
            metric=options.metric,
            budgets=dict(map(_budget, options.budget)),
        )
        page = render_file(dataset, today())
        # Names of folders may hold bytes that are no text.
        options.output.write_text(page, encoding="utf-8", errors="backslashreplace")
    except (ValueError, OSError) as error:
        print(f"error: {without_credentials(str(error))}", file=sys.stderr)
        return 1
    print(options.output)
    return 0


def _budget(text: str) -> tuple[str, Decimal]:
    org_id, equals, amount = text.rpartition("=")
    if not equals:
        raise ValueError(f"--budget must be like org_acme=30000, not {text!r}")
    return org_id, check_budget("--budget", amount)


if __name__ == "__main__":
    sys.exit(main())
