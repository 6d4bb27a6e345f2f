"""What the pages show, as it is read."""

from __future__ import annotations

import threading
from datetime import date
from pathlib import Path

import pytest

from reducto_provider.export.reader import UsageReader
from reducto_provider.export.storage import LocalStorage
from reducto_provider.plugins.usage_page import refresh
from reducto_provider.plugins.usage_page import source as source_module
from reducto_provider.plugins.usage_page.settings import PageDataset
from reducto_provider.plugins.usage_page.source import NotExportedError, PageSource
from reducto_provider.usage.days import DayRange

TODAY = date(2026, 11, 21)


def _fail(*_):
    raise PermissionError("no")


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
        monkeypatch.setattr(refresh, "FRESH_FOR_TIMES", times)
        source = PageSource(PageDataset(name="a", path=publish({date(2026, 11, 3): {"a": 1}})))
        assert [each.used for each in source.overview(TODAY, 30).summaries] == [1]
        publish({date(2026, 11, 3): {"a": 2}})
        assert [each.used for each in source.overview(TODAY, 30).summaries] == [shown]
        assert source.organization("org_acme", None, None, TODAY)[1].total == 2
        monkeypatch.setattr(refresh, "MAX_FRESH_SECONDS", 0)
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
        read = UsageReader.exported_days

        def fail(reader, org_id, *arguments):
            if org_id == "org_bad":
                raise ArithmeticError("s3://key:secret@bucket")
            return read(reader, org_id, *arguments)

        monkeypatch.setattr(UsageReader, "exported_days", fail)
        found = source.overview(TODAY, 30)
        assert (found.unread, found.unproven, [each.error for each in found.summaries]) == (
            0,
            0,
            ["", "s3://***@bucket"],
        )

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

    def test_what_was_read_after_a_request_is_shown_by_the_next(self, publish, monkeypatch):
        """Else a dataset that takes longer than a request waits would be read again and again, and never be shown."""
        source = PageSource(PageDataset(name="a", path=publish({date(2026, 11, 3): {"a": 1}})))
        released, read = threading.Event(), LocalStorage.read
        monkeypatch.setattr(LocalStorage, "read", lambda storage, name: released.wait(30) and read(storage, name))
        with pytest.raises(TimeoutError):
            source.overview(TODAY, 0)
        first = source._refresh
        released.set()
        assert first._ended.wait(30)
        monkeypatch.setattr(LocalStorage, "read", _fail)
        monkeypatch.setattr(first, "_fresh_until", float("inf"))
        assert [each.used for each in source.overview(TODAY, 0).summaries] == [1]

    def test_an_error_is_not_kept(self, publish, monkeypatch):
        source = PageSource(PageDataset(name="a", path=publish({date(2026, 11, 3): {"a": 1}})))
        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "read", _fail)
            with pytest.raises(OSError, match="no"):
                source.overview(TODAY, 30)
        assert [each.used for each in source.overview(TODAY, 30).summaries] == [1]

    def test_no_dataset_yet(self, tmp_path):
        source = PageSource(PageDataset(name="a", path=f"{tmp_path}/none"))
        with pytest.raises(ValueError, match=r"there is no metadata/dataset.json"):
            source.overview(TODAY, 30)


class TestIndex:
    """What the indexes hold is shown at once, and then what is proven: an index may be behind."""

    @pytest.fixture
    def location(self, publish):
        november = {date(2026, 11, day): {"a": 1} for day in range(1, 21)}
        for org_id in ("org_a", "org_b", "org_c"):
            location = publish(november, org_id=org_id)
        return location

    @pytest.fixture
    def source(self, location):
        return PageSource(PageDataset(name="a", path=location))

    @pytest.fixture
    def held(self, monkeypatch):
        """Manifests are not read until the event is set."""
        released, read = threading.Event(), UsageReader.exported_days

        def wait(*arguments):
            assert released.wait(30)
            return read(*arguments)

        monkeypatch.setattr(UsageReader, "exported_days", wait)
        monkeypatch.setattr(refresh, "_PROOF_SECONDS", 0)
        yield released
        released.set()

    def shown(self, source):
        found = source.overview(TODAY, 30)
        return found.unread, found.unproven, {each.org_id: each.used for each in found.summaries}

    def proven(self, source, released):
        released.set()
        source._refresh._ended.wait(30)
        return self.shown(source)

    def test_what_is_in_all_indexes_needs_one_request_each(self, source, held, monkeypatch):
        names, read = [], LocalStorage.read
        monkeypatch.setattr(LocalStorage, "read", lambda storage, name: names.append(name) or read(storage, name))
        assert self.shown(source) == (0, 3, {"org_a": 20, "org_b": 20, "org_c": 20})
        assert len(names) == 1 + 3
        assert self.proven(source, held) == (0, 0, {"org_a": 20, "org_b": 20, "org_c": 20})

    @pytest.mark.parametrize("content", [None, b"{", b'{"2026-11-03": {}}', b'{"2026-11-03": {"credits": "NaN"}}'])
    def test_without_an_index_that_can_be_decoded_it_is_being_read(self, location, source, held, content):
        index = Path(location) / "metadata/org_id=org_b/group_by=product/index.json"
        index.unlink() if content is None else index.write_bytes(content)
        assert self.shown(source) == (1, 2, {"org_a": 20, "org_c": 20})
        assert self.proven(source, held) == (0, 0, {"org_a": 20, "org_b": 20, "org_c": 20})

    def test_an_index_that_is_behind_is_corrected(self, publish, location, source, held):
        index = Path(location) / "metadata/org_id=org_b/group_by=product/index.json"
        behind = index.read_bytes()
        publish({date(2026, 11, 20): {"a": 100}}, org_id="org_b")
        index.write_bytes(behind)
        assert self.shown(source)[2]["org_b"] == 20
        assert self.proven(source, held)[2] == {"org_a": 20, "org_b": 119, "org_c": 20}

    def test_a_folder_without_exports_is_no_organization(self, location, source):
        (Path(location) / "metadata/org_id=org_d/other").mkdir(parents=True)
        assert self.shown(source) == (0, 0, {"org_a": 20, "org_b": 20, "org_c": 20})
