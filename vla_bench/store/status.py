"""How far a run has come, as run.json says, and the sentence about one that is not complete."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vla_bench.types import EpisodeResult

State = Literal["", "started", "complete", "interrupted", "failed"]


@dataclass(frozen=True)
class Status:
    """How a run's last session ended, and what had become of its planned episodes by then."""

    state: State
    """started until it ends, so for good when it is killed; empty for an older vla-bench's run, which did not say."""
    planned: int
    judged: int
    """Of the planned, with a verdict."""
    errored: int = 0
    """Of the planned, played without coming to a verdict."""

    @property
    def complete(self) -> bool:
        """Whether it ended as it should, or has a verdict on all that was planned."""
        return self.state == "complete" or self.judged >= self.planned

    def counting(self, row: EpisodeResult, before: EpisodeResult | None) -> Status:
        """The same once the row of a planned episode has taken the place of the one before, if there was one."""
        judged, errored = self.judged + (row.success is not None), self.errored + (row.success is None)
        if before is not None:
            judged, errored = judged - (before.success is not None), errored - (before.success is None)
        return replace(self, judged=judged, errored=errored)


_ENDINGS = {
    "": "is not complete",
    "started": "ended without a word, as one does that is killed",
    "interrupted": "was interrupted",
    "failed": "failed",
}


def incomplete(status: Status, running: bool = False, run: str = "This run") -> str:
    """The sentence on a run that is not complete; empty for one that is. `running`: somebody is writing to it now."""
    if status.complete:
        return ""
    errored = f", {status.errored} ended in an error" if status.errored else ""
    counts = f"{status.judged} of {status.planned} planned episodes have a verdict{errored}"
    if running:
        return f"{run} is going on: {counts} so far."
    return f"{run} {_ENDINGS[status.state]}: {counts}; its command goes on with it."
