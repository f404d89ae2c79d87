"""The losses of a training: a CSV file that grows row by row, and its plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vla_bench.report.plots import HALF_WIDTH, SERIES, Size, new_axes, save
from vla_bench.store.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, str]
HELD_OUT = "validation "
"""Before the names of losses on what was kept from learning."""


@dataclass(frozen=True)
class LossLog:
    """losses.csv, and the figure losses.png and losses.svg, in that folder."""

    folder: Path

    @property
    def csv(self) -> Path:
        return self.folder / "losses.csv"

    def rows(self) -> list[Row]:
        if not self.csv.is_file():
            return []
        with self.csv.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    @property
    def minutes(self) -> float:
        rows = self.rows()
        return float(rows[-1]["minutes"]) if rows else 0.0

    def last(self) -> str:
        """The last row's losses in words."""
        times = ("step", "minutes", "learning_rate")
        return ", ".join(f"{name} {value}" for name, value in self.rows()[-1].items() if name not in times and value)

    def go_back(self, step: int) -> None:
        """Forget the rows of later steps, which are going to be taken again."""
        rows = [row for row in self.rows() if int(row["step"]) <= step]
        if rows != self.rows():
            self._write(rows)

    def add(
        self,
        step: int,
        rate: float,
        minutes: float,
        losses: Sequence[Mapping[str, float]],
        validation: Mapping[str, float],
    ) -> None:
        """A row with the mean of the losses since the last one, and the validation losses if they were taken."""
        means = {name: sum(one[name] for one in losses) / len(losses) for name in losses[0]}
        held = {HELD_OUT + name: validation.get(name, "") for name in losses[0]}
        told: dict[str, float | str] = {"learning_rate": rate, **means, **held}
        row = {name: value if isinstance(value, str) else f"{value:.6g}" for name, value in told.items()}
        rows = [*self.rows(), {"step": str(step), "minutes": f"{minutes:.3f}", **row}]
        self._write(rows)

    def plot(self) -> None:
        """Draw the rows; takes a second."""
        if rows := self.rows():
            save(draw(rows, new_axes(Size(HALF_WIDTH, 2.8))), self.folder / "losses")

    def _write(self, rows: Sequence[Row]) -> None:
        text = io.StringIO(newline="")
        if rows:
            writer = csv.DictWriter(text, list(rows[-1]))
            writer.writeheader()
            writer.writerows(rows)
        write_whole(self.csv, text.getvalue().encode())


def draw(rows: Sequence[Row], ax: Axes) -> Axes:
    """Every loss over steps, on a logarithmic axis: learnt ones as lines, held-out ones dotted in the same colour."""
    names = [name for name in rows[-1] if f"{HELD_OUT}{name}" in rows[-1]]
    for name, colour in zip(names, SERIES, strict=False):
        for column, style in ((name, "-"), (HELD_OUT + name, ":")):
            told = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
            if told:
                ax.plot(*zip(*told, strict=True), style, color=colour, label=column, linewidth=1.2)
    ax.set_yscale("log")
    ax.set_xlabel("steps")
    ax.set_ylabel("loss")
    ax.legend(frameon=False)
    return ax
