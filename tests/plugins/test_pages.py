"""The page's HTML and CSV: everything is there, and nothing is injected."""

from __future__ import annotations

import csv
import io
from datetime import date, timedelta

import pytest

from reducto_provider.export.reader import UsageReader
from reducto_provider.plugins.usage_page.__main__ import render_file
from reducto_provider.plugins.usage_page.pages import (
    Links,
    message_page,
    organization_csv,
    organization_page,
    overview_page,
)
from reducto_provider.plugins.usage_page.settings import PageDataset
from reducto_provider.plugins.usage_page.source import PageSource
from tests.plugins.html import Page

TODAY = date(2026, 11, 21)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; drop table usage; --",
    "x {{ 7 * 7 }}",
    "</title></style><svg onload=alert(1)>",
    "a&b=c#d?e/../f",
    "\N{RIGHT-TO-LEFT OVERRIDE}evil",
)


@pytest.fixture
def source(publish):
    """The page of a dataset with hostile names everywhere."""

    def make(**fields):
        usage = {TODAY - timedelta(days=back): dict.fromkeys(HOSTILE, 5) for back in range(1, 60)}
        for org_id in HOSTILE:
            location = publish(usage, org_id=org_id)
        return PageSource(PageDataset(name=HOSTILE[0], path=location, budgets=dict.fromkeys(HOSTILE, 100), **fields))

    return make


def test_the_overview_is_harmless_and_complete(source):
    found = source().overview(TODAY, 30)
    html = overview_page(
        found.info,
        found.summaries,
        datasets=[(0, HOSTILE[0]), (1, HOSTILE[1])],
        page=1,
        unread=0,
        unproven=0,
        today=TODAY,
        links=Links(dataset=0),
    )
    page = Page(html).check_harmless()
    for org_id in HOSTILE:
        assert org_id in page.text
    assert "700 of 100 credits (700 %)" in " ".join(page.text.split())
    described = [attributes["aria-label"] for tag, attributes in page.elements if attributes.get("role") == "img"]
    assert len(described) == 2 * len(HOSTILE)
    assert "700 of 100 credits used in November 2026: 700\N{NO-BREAK SPACE}%. Projected: 1,050." in described


def test_an_organization_s_page_is_harmless_and_complete(source):
    for org_id in HOSTILE:
        info, usage, choices = source().organization(org_id, None, None, TODAY)
        html = organization_page(info, usage, choices=choices, links=Links(dataset=0))
        page = Page(html).check_harmless()
        for group in HOSTILE:
            assert group in page.text
        assert [each for each in page.elements if each[0] == "option"]
        break


def test_no_group_reverses_the_figures_after_it(publish):
    location = publish({date(2026, 11, 3): {"\N{RIGHT-TO-LEFT OVERRIDE}evil": 97.9, "b": 2.1}})
    info, usage, choices = PageSource(PageDataset(name="a", path=location)).organization("org_acme", None, None, TODAY)
    page = Page(organization_page(info, usage, choices=choices, links=Links(dataset=0)))
    described = "Largest group: \N{FIRST STRONG ISOLATE}evil\N{POP DIRECTIONAL ISOLATE} with 97.9\N{NO-BREAK SPACE}%."
    assert described in page.text
    assert [each for _, each in page.elements if described in (each.get("aria-label") or "")]


def test_a_message_is_harmless():
    datasets = list(enumerate(HOSTILE))
    page = Page(message_page(*HOSTILE[:2], remedy=HOSTILE[4], code=HOSTILE[1], datasets=datasets, chosen=1))
    assert HOSTILE[1] in page.check_harmless().text


def test_a_dataset_that_fails_is_no_dead_end():
    page = Page(message_page("The dataset can't be read", "", datasets=[(0, "Old"), (2, "New")], chosen=0))
    assert [(e["value"], "selected" in e) for tag, e in page.elements if tag == "option"] == [("0", True), ("2", False)]
    assert not [tag for tag, _ in Page(message_page("", "", datasets=[(0, "Old")])).elements if tag == "option"]


def test_a_file_is_harmless_and_its_links_stay_in_it(source):
    page = Page(render_file(source()._dataset, TODAY)).check_harmless()
    targets = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert len(links) == len(HOSTILE)
    assert {link.removeprefix("#") for link in links} == targets


def test_csv_has_no_formula_and_every_row(publish):
    names = ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "\u00a0=1", "\uff1d1", "a;=1", "a\r\n@1", "\n-1"]
    names += ["plain", 'quo"te', None, "", "two\nlines", "a=1;b-c", "x" * 3000, "\N{RIGHT-TO-LEFT OVERRIDE}=1"]
    location = publish({date(2026, 11, 3): dict.fromkeys(names, 1.5)}, org_id="=org")
    _, usage, _ = PageSource(PageDataset(name="a", path=location)).organization("=org", None, None, TODAY)
    header, *rows = csv.reader(io.StringIO(organization_csv(usage), newline=""))
    assert header == ["org_id", "group_by", "date", "group", "credits", "request_count"]
    assert len(rows) == len(names)
    assert {tuple(row[:3]) + tuple(row[4:]) for row in rows} == {("'=org", "product", "2026-11-03", "1.5", "3")}
    assert {row[3] for row in rows} == {
        *("'=1+1", "'+1", "'-1", "'@x", "'\t=1", "' =1", "'\u00a0=1", "'\uff1d1", "a;'=1", "a\r'\n@1", "'\n-1"),
        *("plain", 'quo"te', "", "two\nlines", "a=1;b-c", "x" * 3000, "\N{RIGHT-TO-LEFT OVERRIDE}=1"),
    }


def test_pages_of_25(publish):
    for number in range(53):
        location = publish({date(2026, 11, 3): {"a": number + 1}}, org_id=f"org_{number:02}")
    found = PageSource(PageDataset(name="a", path=location)).overview(TODAY, 30)

    def page(number):
        html = overview_page(
            found.info,
            found.summaries,
            datasets=[],
            page=number,
            unread=0,
            unproven=0,
            today=TODAY,
            links=Links(dataset=2),
        )
        page = Page(html)
        return [attributes["href"] for tag, attributes in page.elements if tag == "a"], " ".join(page.text.split())

    links, text = page(2)
    assert "Organizations 26 to 50 of 53" in text
    assert links[0] == "organization?dataset=2&org_id=org_27"
    assert links[-2:] == ["./?dataset=2&page=1", "./?dataset=2&page=3"]
    assert len(page(3)[0]) == 3 + 1
    assert page(99) == page(3)
    assert page(-1) == page(1)


class TestStates:
    def overview(self, location, **fields):
        found = PageSource(PageDataset(name="a", path=location, **fields)).overview(TODAY, 30)
        html = overview_page(
            found.info,
            found.summaries,
            datasets=[],
            page=1,
            unread=found.unread,
            unproven=found.unproven,
            today=TODAY,
            links=Links(dataset=0),
        )
        return " ".join(Page(html).text.split())

    def test_filters_are_said(self, publish):
        location = publish({date(2026, 11, 3): {"a": 1}}, filters={"products": ("a", "b")})
        assert "This dataset has filters: only usage with products a, b is in these figures." in self.overview(location)

    def test_a_budget_of_an_organization_that_is_not_there(self, publish):
        location = publish({date(2026, 11, 3): {"a": 1}})
        said = "1 budget is for organizations that have not been exported here: org_acm<e>."
        budgets = {"org_acme": 5, "org_acm<e>": 7}
        assert said in self.overview(location, budgets=budgets)
        dataset = PageDataset(name="a", path=location, budgets=budgets)
        assert said in " ".join(Page(render_file(dataset, TODAY)).text.split())
        assert "have not been exported" not in self.overview(location, budgets={"org_acme": 5})

    def test_gaps_and_days_that_are_not_final(self, publish):
        publish({date(2026, 11, 3): {"a": 1}})
        location = publish({date(2026, 11, 20): {"a": 1}}, at="2026-11-20T23:00:00Z")
        text = self.overview(location)
        assert "Never exported: 4 to 19 November 2026" in text
        assert "Exported before it was over: 20 November 2026" in text
        assert "No projection: " in text

    def test_no_credits(self, publish):
        text = self.overview(publish({date(2026, 11, 20): {"a": None}}))
        assert 'The service sent no credits for some days: set "metric": "requests"' in text
        assert "never exported" not in text.lower()  # a grey bar in the sparkline is a day without figures

    def test_a_budget_that_will_be_exceeded(self, publish):
        usage = {TODAY - timedelta(days=back): {"a": 1} for back in range(1, 60)}
        assert "Projected to exceed its budget on 26 Nov 2026" in self.overview(
            publish(usage), budgets={"org_acme": 25}
        )

    def test_an_organization_whose_folder_can_t_be_read_hides_no_other(self, publish, monkeypatch):
        publish({date(2026, 11, 3): {"a": 1}}, org_id="org_bad")
        location = publish({date(2026, 11, 3): {"a": 1}}, org_id="org_good")

        def fail(reader, org_id, *_):
            if org_id == "org_bad":
                raise OSError("the store says <no>")
            return read(reader, org_id, *_)

        read = UsageReader.exported_days
        monkeypatch.setattr(UsageReader, "exported_days", fail)
        text = self.overview(location)
        assert "org_bad Not read: the store says <no>" in text
        assert "1 credit, no budget" in text
        assert "Not read, listed last 1" in text

    def test_what_is_not_read_or_not_proven_is_said(self, publish):
        found = PageSource(PageDataset(name="a", path=publish({date(2026, 11, 3): {"a": 1}}))).overview(TODAY, 30)
        html = overview_page(
            found.info,
            found.summaries,
            datasets=[],
            page=1,
            unread=1,
            unproven=1200,
            today=TODAY,
            links=Links(dataset=0),
        )
        text = " ".join(Page(html).text.split())
        assert "1 organization is still being read and in no figure here." in text
        assert "The figures of 1,200 organizations are those of the index" in text
