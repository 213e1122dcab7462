"""`Finding` and `Report`: what `greenpg.doctor()` says."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: Something fails, blocks or is lost; it will, sooner or later; it would be better.
ERROR, WARNING, ADVICE = "error", "warning", "advice"
_ORDER = (ERROR, WARNING, ADVICE)


@dataclass(frozen=True)
class Finding:
    """One thing that isn't as it should be."""

    #: A name for programs, as "not_patched".
    code: str
    #: "error", "warning" or "advice".
    level: str
    #: What was found, why it matters, what to do.
    what: str
    why: str
    remedy: str


@dataclass
class Report:
    """What was found, worst first, and what was looked at. `str(report)` is for people."""

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_well(self) -> bool:
        """There is no error and no warning; there may be advice."""
        return all(finding.level == ADVICE for finding in self.findings)

    def sort(self) -> None:
        self.findings.sort(key=lambda finding: _ORDER.index(finding.level))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "is_well": self.is_well,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "facts": self.facts,
        }

    @classmethod
    def from_dict(cls, report: dict[str, Any]) -> Report:
        """What `as_dict()` gave."""
        return cls([Finding(**finding) for finding in report["findings"]], report["facts"])

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            lines += [f"{finding.level}: {finding.what}  [{finding.code}]"]
            for title, text in (("why", finding.why), ("do", finding.remedy)):
                lines += textwrap.wrap(text, 110, initial_indent=f"  {title + ':':5}", subsequent_indent=" " * 7)
            lines.append("")
        if not self.findings:
            lines += ["Nothing found.", ""]
        lines.append("What was looked at:")
        lines += _listed(self.facts, "  ")
        return "\n".join(lines)


def _listed(facts: dict[str, Any], indent: str) -> Iterator[str]:
    for name, value in facts.items():
        if name.startswith("server ") and value:
            yield f"{indent}{name}"
            yield from _listed(value, indent + "  ")
        else:
            yield f"{indent}{name.replace('_', ' ')}: {_shown(value)}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value)) or "none"
    if value is None:
        return "unknown"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
