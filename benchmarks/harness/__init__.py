"""What a benchmark script needs: it declares its peers, and this runs them, and reports.

benchmark.py   Benchmark: what a script declares, and its command line
rounds.py      each peer in a process of its own, rounds interleaved
summary.py     medians, spreads, ratios to greenpg; no I/O
machine.py     on what machine, with which versions
report.py      the Markdown table
plots.py       the pictures
"""

from .benchmark import Benchmark, CantRun
from .plots import Bars, Latencies, Lines
from .report import Aim

__all__ = ["Aim", "Bars", "Benchmark", "CantRun", "Latencies", "Lines"]
