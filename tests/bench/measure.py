# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a row of the bench is, and what becomes of its figures: medians, ratio, spread, JSON, a line of the table. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median


class BenchError(Exception):
    """Why a row, or the whole bench, could not be had: one sentence."""


@dataclass(frozen=True)
class Measured:
    """The figures of one row, a number per run; without *other* our own count by themselves."""

    ours: Sequence[float]
    other: Sequence[float] = ()
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One row of the bench: what is measured, in which unit, and what it should come to."""

    name: str
    unit: str
    aim: str
    measure: Callable[[], Measured]


@dataclass
class Rows:
    """The rows of one family; ``@rows.row(unit, aim)`` makes one of a function that bears the row's name."""

    found: list[Row] = field(default_factory=list)

    def row(self, unit: str, aim: str = "") -> Callable[[Callable[[], Measured]], Callable[[], Measured]]:
        """Return the decorator."""

        def keep(measure: Callable[[], Measured]) -> Callable[[], Measured]:
            self.add(measure.__name__, unit, aim, measure)
            return measure

        return keep

    def add(self, name: str, unit: str, aim: str, measure: Callable[[], Measured]) -> None:
        """Add a row."""
        self.found.append(Row(name, unit, aim, measure))


@dataclass(frozen=True)
class Result:
    """A row with its figures, or with the reason why there are none."""

    row: Row
    measured: Measured

    def json(self) -> dict[str, object]:
        """Return the row as it stands in build/bench.json."""
        ours, other = _median(self.measured.ours), _median(self.measured.other)
        return {
            "name": self.row.name,
            "ours": ours,
            "other": other,
            "ratio": _round(ours / other) if ours is not None and other else None,
            "unit": self.row.unit,
            "runs": len(self.measured.ours),
            "note": self.measured.note,
        }

    def line(self) -> str:
        """Return the row as a line of the table."""
        found = self.json()
        cells = [_cell(self.measured.ours), _cell(self.measured.other), _shown(found["ratio"]), self.row.aim]
        return f"{self.row.name:34}{cells[0]:>18}{cells[1]:>18}{cells[2]:>8}  {cells[3]:8}{self.row.unit:14}{found['note']}"


HEADER = f"{'':34}{'ours ± spread':>18}{'other ± spread':>18}{'ratio':>8}  {'aim':8}{'unit':14}what the other was"


def choose(rows: Iterable[Row], only: str) -> list[Row]:
    """Return the rows that *only* names, comma-separated, in the order of the bench; all when it is empty."""
    known = list(rows)
    wanted = {name for name in only.replace(" ", "").split(",") if name}
    if strange := sorted(wanted - {row.name for row in known}):
        raise BenchError(
            f"there is no row {', '.join(strange)}; the rows are {', '.join(sorted(row.name for row in known))}"
        )
    return [row for row in known if not wanted or row.name in wanted]


def run(row: Row) -> Result:
    """Measure the row; whatever keeps it from being measured is its note."""
    try:
        return Result(row, row.measure())
    except Exception as why:  # a row never ends the run
        said = " ".join(str(why).split()) or type(why).__name__
        return Result(row, Measured((), note=f"not measured: {said}"))


def interleaved(count: int, *turns: Callable[[], float]) -> list[list[float]]:
    """Return the figures of each of *turns*, taken one after the other *count* times, so that what disturbs meets all."""
    found: list[list[float]] = [[] for _turn in turns]
    for _run in range(count):
        for kept, turn in zip(found, turns, strict=True):
            kept.append(turn())
    return found


def _median(figures: Sequence[float]) -> float | None:
    return _round(median(figures)) if figures else None


def _round(figure: float) -> float:
    return float(f"{figure:.4g}")


def _shown(figure: object) -> str:
    return "-" if figure is None else f"{figure:.4g}"


def _cell(figures: Sequence[float]) -> str:
    """Return the median and how far the figures lie from it at most, in percent."""
    middle = _median(figures)
    if middle is None or len(figures) < 2 or not middle:
        return _shown(middle)
    return f"{_shown(middle)} ± {max(abs(each - middle) for each in figures) / middle:.0%}"
