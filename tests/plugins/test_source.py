"""What the pages show, as it is read."""

from __future__ import annotations

import threading
from datetime import date

import pytest

from reducto_provider.export.storage import LocalStorage
from reducto_provider.plugins.usage_page import source as source_module
from reducto_provider.plugins.usage_page.settings import PageDataset
from reducto_provider.plugins.usage_page.source import NotExportedError, PageSource
from reducto_provider.usage.days import DayRange

TODAY = date(2026, 11, 21)


class TestSource:
    @pytest.mark.parametrize(
        ("org_id", "group_by"),
        [("org_other", None), ("org_acme", "feature"), ("org_acme", "../x"), ("../org_acme", None), ("x" * 999, None)],
    )
    def test_what_is_not_there(self, publish, org_id, group_by):
        source = PageSource(PageDataset(name="a", path=publish({date(2026, 11, 3): {"a": 1}})))
        with pytest.raises(NotExportedError, match="has not been exported"):
            source.organization(org_id, group_by, None, TODAY)
        with pytest.raises(NotExportedError, match="has not been exported"):
            source.manifest(org_id, group_by or "product", date(2026, 11, 3))

    def test_the_dimension_that_was_exported_last(self, publish):
        publish({date(2026, 11, 3): {"a": 1}})
        location = publish({date(2026, 11, 20): {"f": 1}}, group_by="feature")
        source = PageSource(PageDataset(name="a", path=location))
        assert [each.group_by for each in source.overview(TODAY, 30).summaries] == ["feature"]
        assert source.organization("org_acme", None, None, TODAY)[1].group_by == "feature"

    def test_the_month_and_the_months(self, publish):
        location = publish({date(2026, 8, 3): {"a": 1}}, days=DayRange(date(2026, 8, 3), date(2026, 10, 3)))
        source = PageSource(PageDataset(name="a", path=location))
        _, usage, choices = source.organization("org_acme", None, None, TODAY)
        assert usage.month.first == date(2026, 10, 1)
        assert [str(month) for month in choices.months] == ["2026-10-01", "2026-09-01", "2026-08-01"]
        assert source.organization("org_acme", "product", date(2026, 8, 1), TODAY)[1].total == 1

    @pytest.mark.parametrize(("times", "shown"), [(0, 2), (10**6, 1)])
    def test_it_is_read_again_after_a_while_that_depends_on_how_long_it_took(self, publish, monkeypatch, times, shown):
        monkeypatch.setattr(source_module, "FRESH_FOR_TIMES", times)
        source = PageSource(PageDataset(name="a", path=publish({date(2026, 11, 3): {"a": 1}})))
        assert [each.used for each in source.overview(TODAY, 30).summaries] == [1]
        publish({date(2026, 11, 3): {"a": 2}})
        assert [each.used for each in source.overview(TODAY, 30).summaries] == [shown]
        assert source.organization("org_acme", None, None, TODAY)[1].total == 2
        monkeypatch.setattr(source_module, "MAX_FRESH_SECONDS", 0)
        again = PageSource(PageDataset(name="a", path=publish({date(2026, 11, 3): {"a": 2}})))
        again.overview(TODAY, 30)
        publish({date(2026, 11, 3): {"a": 3}})
        assert [each.used for each in again.overview(TODAY, 30).summaries] == [3]

    def test_the_dimension_that_has_most_of_the_month(self, publish):
        """All dimensions have the same totals, but one may have been exported later than another."""
        november = {date(2026, 11, day): {"a": 1} for day in range(1, 21)}
        publish(november, group_by="feature")
        location = publish({day: november[day] for day in list(november)[10:]})
        source = PageSource(PageDataset(name="a", path=location))
        assert [(each.group_by, each.used) for each in source.overview(TODAY, 30).summaries] == [("feature", 20)]
        assert source.organization("org_acme", None, None, TODAY)[1].total == 20

    def test_more_rows_than_fit_are_refused(self, publish, monkeypatch):
        source = PageSource(PageDataset(name="a", path=publish({date(2026, 11, 3): dict.fromkeys("abc", 1)})))
        monkeypatch.setattr(source_module, "MAX_ROWS", 3)
        assert source.organization("org_acme", None, None, TODAY)[1].total == 3
        monkeypatch.setattr(source_module, "MAX_ROWS", 2)
        with pytest.raises(source_module.TooManyRowsError, match="org_acme has 3 rows by product from 2026-10-01"):
            source.organization("org_acme", None, None, TODAY)

    def test_any_error_is_of_its_organization_alone(self, publish, monkeypatch):
        publish({date(2026, 11, 3): {"a": 1}}, org_id="org_bad")
        source = PageSource(PageDataset(name="a", path=publish({date(2026, 11, 3): {"a": 1}}, org_id="org_good")))
        best = source_module.best_dimension

        def fail(reader, org_id, *arguments):
            if org_id == "org_bad":
                raise ArithmeticError("s3://key:secret@bucket")
            return best(reader, org_id, *arguments)

        monkeypatch.setattr(source_module, "best_dimension", fail)
        found = source.overview(TODAY, 30)
        assert (found.unread, [each.error for each in found.summaries]) == (0, ["", "s3://***@bucket"])

    def test_a_store_that_hangs_is_waited_for_only_so_long(self, publish, monkeypatch):
        location = publish({date(2026, 11, 3): {"a": 1}})
        released, read = threading.Event(), LocalStorage.read

        def hang(self, name=""):
            released.wait(30)
            return read(self, name)

        monkeypatch.setattr(LocalStorage, "read", hang)
        source = PageSource(PageDataset(name="a", path=location))
        threads = threading.active_count()
        for _ in range(5):
            with pytest.raises(TimeoutError, match="has not answered yet"):
                source.overview(TODAY, 0.01)
        assert threading.active_count() == threads + 1
        released.set()
        assert [each.used for each in source.overview(TODAY, 30).summaries] == [1]

    def test_no_dataset_yet(self, tmp_path):
        source = PageSource(PageDataset(name="a", path=f"{tmp_path}/none"))
        with pytest.raises(ValueError, match=r"there is no metadata/dataset.json"):
            source.overview(TODAY, 30)
