#!/usr/bin/env python3
"""A checkpoint algorithm in Python: what a checkpoint costs decides how often there is one.

    hdcr run --algorithm 'exec:python3 examples/algorithm.py' -- ./simulate

Most checkpoints are increments; each tenth is a full one. No more than a hundredth of the time is spent standing still.
"""

import sys
from pathlib import Path

# From an installed package this line is not needed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

from hdcr import algorithm


class Frugal(algorithm.Algorithm):
    name = "frugal"

    def __init__(self) -> None:
        self.taken = 0

    def started(self, now, event, facts):
        return algorithm.wake(0.3)

    def recovered(self, now, event, facts):
        return algorithm.wake(0.3)

    def due(self, now, event, facts):
        return algorithm.full() if self.taken % 10 == 0 else algorithm.increment()

    def checkpointed(self, now, event, facts):
        self.taken += 1
        return algorithm.wake(max(0.3, 100 * event["stopped_s"]))

    def not_checkpointed(self, now, event, facts):
        return algorithm.wake(1.0 * event["failures"])

    def notice(self, now, event, facts):
        return algorithm.any_kind()

    def forget(self, kept):
        return [one["number"] for one in kept[:-2]]

    def recover(self, fault, kept):
        # What comes again goes back to the oldest.
        return kept[0]["number"] if fault["again"] else kept[-1]["number"]


algorithm.serve(Frugal())
