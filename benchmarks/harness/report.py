"""The Markdown of a benchmark's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from peers import label

from .machine import as_text
from .summary import OURS, Cell, Summary

METRICS = {
    "per_second": "operations per second",
    "us": "µs per operation",
    "ms": "ms per operation",
    "cpu_us": "client CPU, µs per operation",
    "instructions": "instructions per operation",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "max_ms": "max, ms",
    "max_over_median": "max / median",
    "drain_ms": "all served after, ms",
    "connections_opened": "connections opened",
    "connections_left": "connections afterwards",
    "rows_per_second": "rows per second",
    "statement_cpu_us": "client CPU, µs per statement",
    "row_us": "µs per row",
    "row_cpu_us": "client CPU, µs per row",
    "mb_per_second": "MB per second",
    "mb_cpu_ms": "client CPU, ms per MB",
    "stall_ms": "longest stall, ms",
    "gc_ms": "longest garbage collection, ms",
    "peak_mb": "peak memory, MB",
    "deliveries_per_second": "deliveries per second",
    "delivery_cpu_us": "client CPU, µs per delivery",
    "failed": "requests that failed",
    "failed_after": "failed when the server was back",
    "first_ms": "until a request succeeds, ms",
    "whole_ms": "until all connections work, ms",
    "waiter_kib": "KiB for each that waits, beyond a bare task",
    "task_kib": "a bare task, KiB",
    "connection_kib": "KiB for each connection",
    "requests_per_second": "requests per second",
    "request_cpu_us": "worker's CPU, µs per request",
}
"""What the metrics are called in tables and pictures; one that isn't here goes by its own name."""


@dataclass(frozen=True)
class Aim:
    """What the median of greenpg's `metric` is to be: `at_least`, or `at_most`, so many times that of `peer`; or of
    greenpg in `than_scenario`; or, with neither, that number itself."""

    scenario: str
    metric: str
    peer: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    than_scenario: str | None = None

    def text(self) -> str:
        bound = f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"
        than = label(self.peer) if self.peer else self.than_scenario
        return f"{self.scenario}: {METRICS.get(self.metric, self.metric)} {bound}{f' x {than}' if than else ''}"

    def value(self, summary: Summary) -> float | None:
        """None: not measured in this run."""
        try:
            ours = summary[self.scenario][OURS][self.metric]["median"]
            if self.peer:
                return ours / summary[self.scenario][self.peer][self.metric]["median"]
            return ours / summary[self.than_scenario][OURS][self.metric]["median"] if self.than_scenario else ours
        except KeyError:
            return None

    def is_met_by(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else value <= self.at_most


def judged(aims: Sequence[Aim], summary: Summary) -> list[dict]:
    """What became of the aims, those left away that weren't measured."""
    values = [(aim, aim.value(summary)) for aim in aims]
    return [
        {"aim": aim.text(), "measured": value, "is_met": aim.is_met_by(value)}
        for aim, value in values
        if value is not None
    ]


def as_markdown(document: dict) -> str:
    """The whole page of one benchmark."""
    parts = [
        f"# {document['title']}",
        document["description"],
        f"Rounds: {document['rounds']}, interleaved, each peer in a process of its own. The numbers are medians "
        "(lowest to highest). greenpg / peer is the ratio of the medians (lowest to highest of the rounds).",
        pictures(document),
        aims_table(document["aims"]),
        *(_table(scenario, peers) for scenario, peers in document["results"].items()),
        left_out(document),
        as_text(document["environment"]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(scenario: str, peers: dict[str, dict[str, Cell]]) -> str:
    metrics = list(dict.fromkeys(chain.from_iterable(peers.values())))
    chief = metrics[0]
    heads = [METRICS.get(metric, metric) for metric in metrics]
    lines = [
        f"## {scenario}",
        "",
        f"| | {heads[0]} | greenpg / peer |{''.join(f' {head} |' for head in heads[1:])}",
        "|---" + "|---:" * (len(metrics) + 1) + "|",
    ]
    for peer, cells in peers.items():
        name = f"**{label(peer)}**" if peer == OURS else label(peer)
        row = [name, _spread(cells.get(chief)), _ratio(cells.get(chief, {}))]
        row += [_spread(cells.get(metric)) for metric in metrics[1:]]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def pictures(document: dict) -> str:
    return "\n".join(f"![{file}]({file})" for file in document["pictures"])


def aims_table(aims: Sequence[dict]) -> str:
    """Of what `judged()` gives."""
    if not aims:
        return ""
    rows = [f"| {aim['aim']} | {aim['measured']:.3g} | {'met' if aim['is_met'] else '**missed**'} |" for aim in aims]
    return "\n".join(["| aim | measured | |", "|---|---:|---|", *rows])


def left_out(document: dict) -> str:
    return "\n".join(f"- left out: {label(peer)}: {reason}" for peer, reason in document["left_out"].items())


def _spread(cell: Cell | None) -> str:
    if cell is None:
        return ""
    middle, least, most = (number(cell[name]) for name in ("median", "min", "max"))
    return middle if least == most else f"{middle} ({least} to {most})"


def _ratio(cell: Cell) -> str:
    if "ratio" not in cell:
        return ""
    return f"**{cell['ratio']:.2f}** ({cell['ratio_min']:.2f} to {cell['ratio_max']:.2f})"


def number(value: float) -> str:
    """Three significant digits, as people write them: 24,400, 3.14, 0.0271."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"
