"""From the numbers of each round to medians, spreads and ratios. No I/O.

A round of a peer is {scenario: {metric: number}}; a summary {scenario: {peer: {metric: cell}}}, where a cell is
{"median", "min", "max", "rounds"}, and for the peers other than greenpg also the ratio greenpg / peer: "ratio" of the
medians, "ratio_min" and "ratio_max" of the rounds one by one, since the peers of a round ran within seconds of each
other and so shared what else the machine was doing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

Numbers = Mapping[str, float]
Round = Mapping[str, Numbers]
Cell = dict[str, float | list[float]]
Summary = dict[str, dict[str, dict[str, Cell]]]

OURS = "greenpg"


def summarize(rounds: Mapping[str, Sequence[Round]]) -> Summary:
    """`rounds`: the rounds of each peer. Scenarios, peers and metrics keep the order in which they come."""
    summary: Summary = {}
    for peer, its_rounds in rounds.items():
        for scenario, numbers in its_rounds[0].items():
            for metric in numbers:
                if not all(metric in one.get(scenario, {}) for one in its_rounds):
                    continue  # what it measures did not happen in some round
                values = [one[scenario][metric] for one in its_rounds]
                cell: Cell = {"median": median(values), "min": min(values), "max": max(values), "rounds": values}
                if peer != OURS and all(metric in one.get(scenario, {}) for one in rounds.get(OURS, [{}])):
                    cell |= _ratios([one[scenario][metric] for one in rounds[OURS]], values)
                summary.setdefault(scenario, {}).setdefault(peer, {})[metric] = cell
    return summary


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> Cell:
    if 0 in theirs:
        return {}
    by_round = [our / their for our, their in zip(ours, theirs, strict=True)]
    return {"ratio": median(ours) / median(theirs), "ratio_min": min(by_round), "ratio_max": max(by_round)}


def rounded(value: object, digits: int = 4) -> object:
    """`value` with all floats in it cut to significant digits: what the noise leaves of them is less."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner, digits) for inner in value]
    return value
