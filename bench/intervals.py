"""What several measurements say: a percentile; of pairs, the middle of their ratio and an interval around it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The middle of some ratios (Hodges-Lehmann), and its interval of at least 95 % confidence."""

    middle: float
    low: float
    high: float

    def reaches(self, aim: float) -> bool:
        """The middle is at least `aim`, or `aim` lies inside the interval."""
        return self.middle >= aim or self.low <= aim <= self.high


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that `part` of them do not exceed (nearest rank)."""
    return sorted(values)[math.ceil(part * len(values)) - 1]


def hodges_lehmann(ratios: Sequence[float]) -> Interval:
    """The interval that Wilcoxon's signed-rank test gives, on the logarithms: no distribution is assumed, only that
    a ratio is as likely to be k times its middle as its k-th part. Below 6 ratios no 95 % can be had: the interval
    is all of them."""
    logs = [math.log(ratio) for ratio in ratios]
    walsh = sorted((a + b) / 2 for at, a in enumerate(logs) for b in logs[at:])
    cut = _cut(len(logs))
    half = len(walsh) // 2
    middle = walsh[half] if len(walsh) % 2 else (walsh[half - 1] + walsh[half]) / 2
    return Interval(math.exp(middle), math.exp(walsh[cut]), math.exp(walsh[-1 - cut]))


def _cut(count: int) -> int:
    """How many Walsh averages lie outside the interval on either side: as many as the largest rank sum that is met with
    a probability of at most 2.5 %, by the exact distribution."""
    ways = [1]
    for rank in range(1, count + 1):
        longer = ways + [0] * rank
        for at, number in enumerate(ways):
            longer[at + rank] += number
        ways = longer
    total, cut = 0, 0
    for number in ways:
        total += number
        if total > 0.025 * 2**count:
            return max(0, cut - 1)
        cut += 1
    return cut
