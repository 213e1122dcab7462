"""Runs programs on both sides, finds differences and reduces them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .allowances import KNOWN, MEANT, NOTHING, Differing
from .programs import make_program

#: Runs that reducing one program may take.
_LONGEST_SHRINK = 400


@dataclass
class Difference:
    seed: Any
    program: list[str]
    step: int
    details: list[str]

    def __str__(self):
        lines = [f"seed {self.seed}: differs at step {self.step + 1} of {len(self.program)}"]
        for number, step in enumerate([*self.program, "(the end)"][: self.step + 1]):
            mark = "->" if number == self.step else "  "
            lines += [f"  {mark} {line}" for line in step.split("\n")]
        return "\n".join([*lines, *(f"     {detail}" for detail in self.details)])


def first_difference(seed, program, expected, seen, rules=()):
    """The first step at which the sides differ and no rule says that they may, or None."""
    if expected == seen:
        return None
    steps = [*program, "(the end)"]
    for number, (theirs, ours) in enumerate(zip(expected, seen, strict=True)):
        if theirs == ours:
            continue
        details = []
        for differing in _differing(steps[number], "\n".join(steps[: number + 1]), theirs, ours):
            rule = next((rule for rule in rules if rule.applies(differing)), None)
            if rule is None:
                details.append(f"{differing.key}: psycopg2 {differing.theirs}, greenpg {differing.ours}")
            elif rule.ends:
                return None
        if details:
            return Difference(seed, program, number, details)
    return None


def _differing(step, history, theirs, ours):
    if len(theirs) != len(ours):
        yield Differing(step, history, "looks", len(theirs), len(ours), {})
    for left, right in zip(map(_flat, theirs), map(_flat, ours), strict=False):
        for key in [*left, *(key for key in right if key not in left)]:
            one, other = left.get(key, NOTHING), right.get(key, NOTHING)
            if one != other:
                yield Differing(step, history, key, one, other, right)


def _flat(seen):
    flat = {}
    for key, value in seen.items():
        if isinstance(value, dict):
            flat.update((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            flat[key] = value
    return flat


class Comparison:
    """Both sides of one comparison, and what they differ in."""

    def __init__(self, oracle, session, report=print, *, is_strict=False):
        self._rules = MEANT if is_strict else [*MEANT, *KNOWN]
        self._oracle = oracle
        self._session = session
        self._report = report
        self.compared = 0
        self.found = []
        self.unstable = []
        #: What runs now, and since when: for whoever watches over programs that hang.
        self.running = []
        self.running_since = time.monotonic()

    def run(self, seeds):
        """Compare the programs of the seeds; what differs is reduced and reported, and is in `found`."""
        seeds = list(seeds)
        for start in range(0, len(seeds), 25):
            batch = seeds[start : start + 25]
            programs = [make_program(seed) for seed in batch]
            self._oracle.ask(programs)
            seen = [self._run(program) for program in programs]
            for seed, program, theirs, ours in zip(batch, programs, self._oracle.answer(), seen, strict=True):
                self.compared += 1
                difference = first_difference(seed, program, theirs, ours, self._rules)
                if difference is not None:
                    self._take(difference)

    def compare(self, program, seed=None):
        """The first difference of one program, or None."""
        self._oracle.ask([program])
        ours = self._run(program)
        return first_difference(seed, program, self._oracle.answer()[0], ours, self._rules)

    def _run(self, program):
        self.running, self.running_since = program, time.monotonic()
        return self._session.run(program)

    def _take(self, difference):
        again = self.compare(difference.program, difference.seed)
        if again is None:
            self.unstable.append(difference)
            self._report(f"not seen again: {difference}")
        else:
            shrunk = self.shrink(again)
            self.found.append(shrunk)
            self._report(str(shrunk))

    def shrink(self, difference):
        """The difference with as few steps, and lines of steps, as show one."""
        runs = 0
        best = difference
        is_better = True
        while is_better and runs < _LONGEST_SHRINK:
            is_better = False
            for program in _smaller(best.program[: best.step + 1]):
                runs += 1
                smaller = self.compare(program, best.seed)
                if smaller is not None:
                    best, is_better = smaller, True
                    break
                if runs >= _LONGEST_SHRINK:
                    break
        return best


def _smaller(program):
    """Programs that are a little smaller, the smallest first."""
    if len(program) > 4:
        half = len(program) // 2
        yield program[:1] + program[half:]
    for number in range(len(program)):
        yield program[:number] + program[number + 1 :]
    for number, step in enumerate(program):
        lines = step.split("\n")
        if len(lines) < 2:
            continue
        for line in range(len(lines)):
            shorter = "\n".join(lines[:line] + lines[line + 1 :])
            try:
                compile(shorter, "<step>", "exec")
            except SyntaxError:
                continue
            yield [*program[:number], shorter, *program[number + 1 :]]
        if lines[0].endswith(":"):
            body = "\n".join(other[4:] for other in lines[1:] if other.startswith("    "))
            try:
                compile(body, "<step>", "exec")
            except SyntaxError:
                continue
            yield [*program[:number], body, *program[number + 1 :]]
