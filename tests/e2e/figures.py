"""The figures of a run with faults, for the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.story import BUCKET, DAGS, ORGS, Story

PLACE = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- /figures -->)", re.DOTALL)


def write_figures(page: Path, story: Story) -> None:
    """Replace the figures of a page."""
    page.write_text(PLACE.sub(lambda _: table(story), page.read_text()))


def table(story: Story) -> str:
    """The figures as a Markdown table."""
    [[instances, tries]] = story.postgres.query(
        "select count(*), sum(try_number) from task_instance where try_number > 0"
    )
    runs = sum(len(story.airflow.runs(dag_id)) for dag_id in DAGS)
    requests = story.simulator.requests
    met = story.trouble.met()
    faults = ", ".join(f"{count} of {name}" for name, count in sorted(met.items()))
    refused = sum(request.status == 401 for request in requests)
    files = [key for key in story.s3.objects(BUCKET) if "/metadata/" not in key and "/." not in key]
    figures = {
        "organizations, days": f"{len(ORGS)}, {story.first} to {story.last}",
        "runs of example DAGs": f"{runs:,}",
        "task instances": f"{int(instances):,}",
        "tries of them that were lost or failed, and repeated": f"{int(tries) - int(instances):,}",
        "requests that the service got": f"{len(requests):,}",
        "requests that met a fault": f"{met.total():,}: {faults}",
        "requests refused with 401 after a key was revoked": f"{refused:,}",
        "files in the storage, each with exactly its rows": f"{len(files):,}",
        "from the first process to the last run's end": f"{story.times['everything'] / 60:.0f} minutes, on two cores",
    }
    rows = "".join(f"| {name} | {value} |\n" for name, value in figures.items())
    done = "".join(f"- {what}\n" for what in story.trouble.what)
    return f"\n| | |\n| --- | --- |\n{rows}\nWhat was done to it, in this order:\n\n{done}\n"
