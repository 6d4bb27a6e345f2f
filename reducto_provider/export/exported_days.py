"""What a dataset or a table has of an organization by a dimension: its days, with their totals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Self

from reducto_provider.usage.days import DayRange

if TYPE_CHECKING:
    from reducto_provider.export.manifest import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedDay:
    """
    What the manifest says of a day, or the record beside a table.

    :param row_count: 0 for a day without usage, which has no file.
    :param credits: None if the service sent none.
    :param is_final: whether the day was over when it was requested.
    :param exported_at: when it was last written, in ISO 8601; empty if that was not recorded.
    :param run: the task instance that wrote it. None for a table, whose history names it.
    :param sha256: of the file, or of the rows in a table; None without usage.
    """

    day: date
    row_count: int
    credits: Decimal | None
    request_count: int
    is_final: bool
    exported_at: str
    run: str | None
    sha256: str | None

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        return cls(
            day=manifest.date,
            row_count=manifest.row_count,
            credits=None if manifest.credits is None else Decimal(manifest.credits),
            request_count=manifest.request_count,
            is_final=manifest.final,
            exported_at=manifest.exported_at,
            run=manifest.run,
            sha256=manifest.sha256,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedDays:
    """
    The days of an organization by a dimension that a dataset has.

    :param days: in order.
    :param unreadable: the days whose manifests can't be read as such. They count as neither exported nor missing.
    :param span: from the first day that has a manifest to the last, whatever days were requested; None without any.
    """

    days: Mapping[date, ExportedDay]
    span: DayRange | None
    unreadable: tuple[date, ...] = ()

    def missing(self, days: DayRange) -> list[DayRange]:
        """Return the ranges of days that have no manifest."""
        ranges: list[DayRange] = []
        for day in days.days():
            if day in self.days or day in self.unreadable:
                continue
            if ranges and (day - ranges[-1].last).days == 1:
                ranges[-1] = DayRange(ranges[-1].first, day)
            else:
                ranges.append(DayRange(day, day))
        return ranges
