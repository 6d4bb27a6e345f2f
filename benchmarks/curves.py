"""Draw the curves of growth for the documentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from benchmarks.measuring import PROJECT, Sample

PICTURE: Final = PROJECT / "docs/benchmarks-growth.png"

IN_S3: Final = ", S3"

Curve = list[tuple[int, Sample]]
"""Sizes and the least figures of their measurements."""


def draw(found: Mapping[str, Curve]) -> None:
    """Draw the curves for the documentation."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    mpl.rcParams.update({"grid.alpha": 0.25, "axes.titlesize": 9, "xtick.minor.visible": False})
    from matplotlib import pyplot as plt

    figure, plots = plt.subplots(2, len(LABELS) + 1, figsize=(13.5, 4.4), sharex="col", layout="constrained")
    for column, (axis, (title, per_second, label)) in enumerate(LABELS.items()):
        above, below = plots[0][column], plots[1][column]
        for name, dark, light in ((axis, "#5b4fc4", "#a79fe0"), (f"{axis}{IN_S3}", "#c47a1f", "#e5bf8c")):
            if (curve := found.get(name)) is None:
                continue
            sizes = [size for size, _ in curve]
            place = " (S3)" if name.endswith(IN_S3) else ""
            for clock, style, color in (("cpu", "o-", dark), ("wall", "o:", light)):
                each = [sample[clock] / size * per_second for size, sample in curve]
                above.plot(sizes, each, style, color=color, label=f"{CLOCKS[clock]}{place}", ms=4)
            below.plot(sizes, [sample["added"] / 2**20 for _, sample in curve], "o-", color=dark, ms=4)
        above.set(title=title, ylabel=label, yscale="log")
        least, most = above.get_ylim()
        above.set_ylim(10 ** math.floor(math.log10(least)), 10 ** math.ceil(math.log10(most)))
        above.yaxis.set_major_formatter("{x:g}")
        below.set(xlabel=axis, ylabel="MiB at the peak", xscale="log")
        below.set_ylim(0, max(LEAST_MIB_SHOWN, below.get_ylim()[1]))
    for place, axis in zip(plots[:, -1], ("organizations", "days"), strict=True):
        curve = found[f"{axis}{IN_S3}"]
        each = [sample["requests"] / size for size, sample in curve]
        place.plot([size for size, _ in curve], each, "o-", color="#c47a1f", ms=4)
        place.set(xlabel=axis, ylabel=f"requests by {axis}", xscale="log", ylim=(0, 1.1 * max(each)))
    plots[0][-1].set(title="requests to S3")
    plots[0][LEGEND_COLUMN].legend(frameon=False, fontsize=7)
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})
    plt.close(figure)


CLOCKS: Final = {"cpu": "processor", "wall": "clock"}
LEGEND_COLUMN: Final = 2
LABELS: Final = {
    "rows": ("one answer, one Parquet file", 1e6, "µs a row"),
    "rows in parts": ("31 days an answer, a file a day", 1e6, "µs a row"),
    "organizations": ("a fleet, a day of each", 1e3, "ms an organization"),
    "days": ("one answer, a file a day", 1e3, "ms a day"),
}
LEAST_MIB_SHOWN: Final = 100
"""Keeps a MiB more or less from looking like growth."""
