"""The rows of a Delta table, whose files are Parquet."""

from __future__ import annotations

from importlib.util import find_spec

from reducto_provider.export.formats.parquet import ParquetFormat


class DeltaFormat(ParquetFormat):
    """The columns and types of Parquet, in the files of a Delta table instead of a file per day."""

    name = "delta"

    def check_installed(self) -> None:
        if find_spec("deltalake") is None or find_spec("pyarrow") is None:
            raise ImportError(
                "output_format='delta' needs deltalake and pyarrow: pip install 'airflow-provider-reducto[delta]'"
            )
