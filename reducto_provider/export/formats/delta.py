"""The rows of a Delta table, whose files are Parquet."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.util import find_spec

from reducto_provider.export.formats.parquet import ParquetFormat
from reducto_provider.export.threads import import_pyarrow

MIN_DELTALAKE = "1.6.6"
"""Older ones may be installed without the extra: the Amazon provider brings 1.5.0 to an Airflow 3.1.8 of its day."""


class DeltaFormat(ParquetFormat):
    """The columns and types of Parquet, in the files of a Delta table instead of a file per day."""

    name = "delta"

    def load(self) -> None:
        if find_spec("deltalake") is None or find_spec("pyarrow") is None:
            raise ImportError(
                "output_format='delta' needs deltalake and pyarrow: pip install 'airflow-provider-reducto[delta]'"
            )
        if numbers(installed := version("deltalake")) < numbers(MIN_DELTALAKE):
            raise ImportError(
                f"output_format='delta' needs deltalake {MIN_DELTALAKE} or newer, not {installed}: "
                "pip install 'airflow-provider-reducto[delta]'"
            )
        import_pyarrow()


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
