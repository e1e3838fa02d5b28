"""Wald's sequential test of a rate: it decides as soon as the trials suffice, and watches on."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class SequentialTest:
    """`honest_rate` against `cheating_rate`, in (0, 1), the honest one the lower.

    One pass of the test (Wald 1945) rejects an honest engine with probability `false_alarm` at
    most, and accepts one at the cheating rate with probability `miss` at most. Accepted, it starts
    again: an engine that is honest at first gains nothing from it.
    """

    honest_rate: float
    cheating_rate: float
    false_alarm: float = 1e-6
    miss: float = 1e-3

    def rejected_at(self, trials: Iterable[bool]) -> int | None:
        """After how many trials (True: a hit) the honest rate is rejected; None if it is not."""
        hit = math.log(self.cheating_rate / self.honest_rate)
        clear = math.log1p(-self.cheating_rate) - math.log1p(-self.honest_rate)
        accept = math.log(self.miss / (1 - self.false_alarm))
        reject = math.log((1 - self.miss) / self.false_alarm)
        evidence = 0.0
        for number, is_hit in enumerate(trials, start=1):
            evidence += hit if is_hit else clear
            if evidence >= reject:
                return number
            if evidence <= accept:
                evidence = 0.0
        return None
