"""
The datasets that a task reads and writes, named for OpenLineage: https://openlineage.io/docs/spec/naming.

Imported only when OpenLineage extracts a task's lineage: its classes come with the extra ``openlineage``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

from airflow.providers.common.compat.openlineage.facet import (
    DatasetFacet,
    InputDataset,
    OutputDataset,
    OutputStatisticsOutputDatasetFacet,
    SchemaDatasetFacet,
    SchemaDatasetFacetFields,
)

from reducto_provider.export.formats import SENT_COLUMNS
from reducto_provider.hooks.reducto import ENDPOINT

if TYPE_CHECKING:
    from reducto_provider.export.sink import PublishedFile
    from reducto_provider.export.storage import Storage

_SCHEMES = {"s3a": "s3", "gcs": "gs", "abfs": "abfss"}


def usage_dataset(base_url: str, org_id: str, group_by: str) -> InputDataset:
    """Return the input for an organization's usage by one dimension: the service's URL without the days."""
    url = urlsplit(base_url)
    host = url.netloc.removesuffix({"https": ":443", "http": ":80"}[url.scheme])
    query = urlencode({"orgId": org_id, "groupBy": group_by}, quote_via=quote)
    return InputDataset(
        namespace=f"{url.scheme}://{host}",
        name=f"{url.path}{ENDPOINT}?{query}",
        facets=_schema(SENT_COLUMNS),
    )


def files_dataset(
    storage: Storage, name: str, columns: Mapping[str, str], published: Sequence[PublishedFile] | None
) -> OutputDataset:
    """
    Return the output for a folder of files, or for one file.

    :param published: the files that were written; None if the export failed.
    """
    namespace, path = dataset_name(storage.location(name), storage.account)
    statistics = published and OutputStatisticsOutputDatasetFacet(
        rowCount=sum(file.row_count for file in published),
        size=sum(file.size or 0 for file in published),
        fileCount=sum(file.uri is not None for file in published),
    )
    return OutputDataset(
        namespace=namespace,
        name=path,
        facets=_schema(columns),
        outputFacets={"outputStatistics": statistics} if statistics else {},
    )


def table_dataset(
    storage: Storage, columns: Mapping[str, str], published: Sequence[PublishedFile] | None
) -> OutputDataset:
    """
    Return the output for a table.

    :param published: its days that were exported; None if the export failed.
    """
    namespace, path = dataset_name(storage.location(), storage.account)
    statistics = published and OutputStatisticsOutputDatasetFacet(rowCount=sum(day.row_count for day in published))
    return OutputDataset(
        namespace=namespace,
        name=path,
        facets=_schema(columns),
        outputFacets={"outputStatistics": statistics} if statistics else {},
    )


def dataset_name(location: str, account: str | None = None) -> tuple[str, str]:
    """
    Return the namespace and the name of the dataset at a URL.

    :param account: the storage account of an Azure container.
    """
    scheme, _, rest = location.partition("://")
    if scheme == "file":
        return "file", rest
    scheme = _SCHEMES.get(scheme, scheme)
    bucket, _, path = rest.partition("/")
    if scheme == "abfss" and account:
        bucket = f"{bucket}@{account}.dfs.core.windows.net"
    return f"{scheme}://{bucket}", path


def _schema(columns: Mapping[str, str]) -> dict[str, DatasetFacet]:
    fields = [SchemaDatasetFacetFields(name=name, type=kind) for name, kind in columns.items()]
    return {"schema": SchemaDatasetFacet(fields=fields)}
