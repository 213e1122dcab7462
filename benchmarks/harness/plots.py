"""The pictures: SVG, one colour for each peer in all of them. matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peers import color, label

from .report import METRICS, number
from .summary import OURS, Summary

STYLE = {
    "svg.fonttype": "none",  # text as text: a tenth of the size
    "svg.hashsalt": "greenpg",  # the same numbers give the same file
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
ROW_INCHES = 0.27


@dataclass(frozen=True)
class Bars:
    """For each scenario the peers' medians of one metric, with the spread of the rounds; without `left_out` peers."""

    name: str
    metric: str
    scenarios: Sequence[str]
    title: str
    is_log: bool = False
    left_out: Sequence[str] = ()

    def draw(self, summary: Summary) -> Any:
        panels = _panels(summary, self.scenarios, self.metric, self.left_out)
        if not panels:
            return None
        figure, axes = _figure(panels, self.title, self.is_log)
        for axis, (scenario, peers) in zip(axes, panels.items(), strict=True):
            for row, peer in enumerate(peers):
                cell = summary[scenario][peer][self.metric]
                middle, least, most = cell["median"], cell["min"], cell["max"]
                axis.barh(row, middle, color=color(peer), height=0.74)
                spread = [[middle - least], [most - middle]]
                axis.errorbar(middle, row, xerr=spread, color="#222222", capsize=2.5, linewidth=0.9)
                axis.annotate(
                    number(middle),
                    (most, row),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontweight=_weight(peer),
                )
            axis.margins(x=0.12)
        axes[-1].set_xlabel(METRICS.get(self.metric, self.metric) + (" (log scale)" if self.is_log else ""))
        return figure


MARKERS = {"p50": "o", "p99": "d", "longest": "|"}


@dataclass(frozen=True)
class Latencies:
    """For each scenario and peer: the medians of p50_ms, p99_ms and max_ms, on a logarithmic scale."""

    name: str
    scenarios: Sequence[str]
    title: str
    left_out: Sequence[str] = ()

    def draw(self, summary: Summary) -> Any:
        from matplotlib import pyplot

        panels = _panels(summary, self.scenarios, "p99_ms", self.left_out)
        if not panels:
            return None
        figure, axes = _figure(panels, self.title, is_log=True)
        for axis, (scenario, peers) in zip(axes, panels.items(), strict=True):
            for row, peer in enumerate(peers):
                cells = summary[scenario][peer]
                p50, p99, longest = (cells[metric]["median"] for metric in ("p50_ms", "p99_ms", "max_ms"))
                axis.plot([p50, longest], [row, row], color=color(peer), linewidth=3, solid_capstyle="butt", alpha=0.45)
                for value, marker in zip((p50, p99, longest), MARKERS.values(), strict=True):
                    axis.plot(value, row, marker, color=color(peer), markersize=7, markeredgewidth=2)
        axes[-1].set_xlabel("milliseconds (log scale)")
        handles = [
            pyplot.Line2D([], [], color="#444444", marker=marker, linestyle="", markersize=7, label=name)
            for name, marker in MARKERS.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        return figure


def _panels(summary: Summary, scenarios: Sequence[str], metric: str, left_out: Sequence[str]) -> dict[str, list[str]]:
    """The peers of each scenario that was measured."""
    return {
        scenario: [peer for peer, cells in summary[scenario].items() if metric in cells and peer not in left_out]
        for scenario in scenarios
        if scenario in summary
    }


def _figure(panels: dict[str, list[str]], title: str, is_log: bool) -> tuple[Any, Sequence[Any]]:
    """A panel for each scenario, one below the other, on one x axis; a row for each peer, the first at the top."""
    from matplotlib import pyplot

    counts = [len(peers) for peers in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels),
        figsize=(8, 0.9 + sum(counts) * ROW_INCHES + 0.65 * len(panels)),
        height_ratios=counts,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title, fontweight="bold")
    for axis, (scenario, peers) in zip(axes[:, 0], panels.items(), strict=True):
        if is_log:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(partial(_between_decades, axis))
        axis.xaxis.set_major_formatter(lambda value, _: number(value))
        axis.set_title(scenario, loc="left")
        axis.set_yticks(range(len(peers)), [label(peer) for peer in peers])
        axis.set_ylim(len(peers) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        for tick, peer in zip(axis.get_yticklabels(), peers, strict=True):
            tick.set_fontweight(_weight(peer))
            tick.set_color(color(peer) if peer == OURS else "#222222")
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes[:, 0]


def _between_decades(axis: Any, value: float, _: object) -> str:
    """The label of a tick between two powers of ten: some, where there would be next to none."""
    low, high = axis.get_xlim()
    return number(value) if high < 50 * low and f"{value:e}"[0] in "25" else ""


def _weight(peer: str) -> str:
    return "bold" if peer == OURS else "normal"


@dataclass(frozen=True)
class Lines:
    """The medians of one metric by what grows, with the spread of the rounds: `scenarios` says which scenario belongs
    to which x, whose scale is logarithmic."""

    name: str
    metric: str
    scenarios: Mapping[float, str]
    title: str
    x_label: str

    def draw(self, summary: Summary) -> Any:
        from matplotlib import pyplot

        xs = [x for x, scenario in self.scenarios.items() if scenario in summary]
        if len(xs) < 2:
            return None
        figure, axis = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
        figure.suptitle(self.title, fontweight="bold")
        for peer in summary[self.scenarios[xs[-1]]] | summary[self.scenarios[xs[0]]]:
            points = [
                (x, summary[self.scenarios[x]][peer][self.metric]) for x in xs if peer in summary[self.scenarios[x]]
            ]
            if len(points) < 2:
                continue
            own_xs, cells = zip(*points, strict=True)
            middles = [cell["median"] for cell in cells]
            axis.errorbar(
                own_xs,
                middles,
                [[cell["median"] - cell["min"] for cell in cells], [cell["max"] - cell["median"] for cell in cells]],
                fmt="o-",
                color=color(peer),
                label=label(peer),
                linewidth=3 if peer == OURS else 1.5,
                elinewidth=0.8,
                capsize=3,
                markersize=5,
                zorder=3 if peer == OURS else 2,
            )
        axis.set_xscale("log")
        axis.set_xticks(xs, [f"{x:,}" for x in xs])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(lambda value, _: number(value))
        axis.set_xlabel(self.x_label)
        axis.set_ylabel(METRICS.get(self.metric, self.metric))
        axis.grid(color="#dddddd", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return figure


Picture = Bars | Latencies | Lines


def draw(pictures: Sequence[Picture], document: dict, directory: Path) -> list[str]:
    """Write the pictures for which there are results; returns the names of the files."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    drawn = []
    with matplotlib.rc_context(STYLE):
        for picture in pictures:
            figure = picture.draw(document["results"])
            if figure is not None:
                file = f"{document['benchmark']}-{picture.name}.svg"
                figure.savefig(directory / file, metadata={"Date": None})
                pyplot.close(figure)
                drawn.append(file)
    return drawn
