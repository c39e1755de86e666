"""The attacks of a website-fingerprinting observer, on traces with labels, and how well they do. Pure, but for chance,
which is seeded.

An attack trains on traces of the very condition that it is tried on, of all pages (a closed world), in folds that
share nothing, with as many visits of each page in each. What is measured so bounds attackers from below, never from
above. The interval of 95 % is Student's, over the folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import features
import numpy as np
from cells import Cell
from features import Row
from numpy.typing import NDArray
from scipy import stats
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

Labels = NDArray[np.int64]
MOST_FOLDS = 5
_HARDLY = 0.001
TREES = 500
_SEED = 1


@dataclass(frozen=True)
class Attack:
    """What it looks at, and how it learns. `learner`: of how many trees, and visits to train on."""

    name: str
    look: Callable[[Sequence[Cell]], Row]
    learner: Callable[[int, int], Any]


def _trees(trees: int, _: int) -> Any:
    return ExtraTreesClassifier(trees, random_state=_SEED)


def _svm(_: int, visits: int) -> Any:
    # Its two numbers are found within the training folds only.
    grid = {"svc__C": [2.0**n for n in (1, 5, 9, 13)], "svc__gamma": [2.0**n for n in (-5, -1, 3)]}
    pipe = make_pipeline(MinMaxScaler(), SVC())
    return GridSearchCV(pipe, grid, cv=min(3, visits)) if visits > 1 else pipe


def _nearest(_: int, __: int) -> Any:
    return KNeighborsClassifier(1)


ATTACKS = (
    Attack("k-FP", features.kfp, _trees),
    Attack("k-FP without time", features.kfp_without_time, _trees),
    Attack("time only", features.time_only, _trees),
    Attack("CUMUL-SVM", features.cumul, _svm),
    Attack("TAM and trees", features.tam, _trees),
    Attack("size, 1-NN", features.size, _nearest),
)
BY_NAME = {attack.name: attack for attack in ATTACKS}


@dataclass(frozen=True)
class Accuracy:
    """The part of traces that were told right: the mean over the folds, and its interval."""

    mean: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether it may well be that."""
        return self.low <= value <= self.high

    def rarity(self, value: float, traces: int) -> float:
        """How often so many traces, or more, are told right where each is by that chance."""
        return float(stats.binomtest(round(self.mean * traces), traces, value, alternative="greater").pvalue)

    def surely_not(self, value: float, traces: int) -> bool:
        """Whether so many traces can hardly be told so well, or so badly, where one of them is by that chance: for
        controls, which are many, and must not fail by bad luck."""
        return bool(stats.binomtest(round(self.mean * traces), traces, value).pvalue < _HARDLY)


def interval(scores: Sequence[float]) -> Accuracy:
    """Of the folds' scores."""
    mean = float(np.mean(scores))
    if len(scores) < 2:
        return Accuracy(mean, 0.0, 1.0)
    spread = float(np.std(scores, ddof=1)) / math.sqrt(len(scores))
    reach = float(stats.t.ppf(0.975, len(scores) - 1)) * spread
    return Accuracy(mean, max(0.0, mean - reach), min(1.0, mean + reach))


def judge(attack: Attack, traces: Sequence[Sequence[Cell]], labels: Sequence[int], *, trees: int = TREES) -> Accuracy:
    """How well it tells the labels. Each label needs as many traces as there are folds, and there are two at least."""
    return interval(scores(attack, np.array([attack.look(trace) for trace in traces]), np.array(labels), trees))


def scores(attack: Attack, rows: Row, labels: Labels, trees: int = TREES) -> list[float]:
    """Of each fold."""
    fewest = int(np.bincount(labels)[np.unique(labels)].min())
    folds = min(MOST_FOLDS, fewest)
    found = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=_SEED).split(rows, labels):
        learner = attack.learner(trees, fewest - math.ceil(fewest / folds))
        learner.fit(rows[train], labels[train])
        found.append(float(np.mean(learner.predict(rows[test]) == labels[test])))
    return found


def shuffled(labels: Sequence[int]) -> list[int]:
    """As many of each, on any trace: what an attack finds in these is chance."""
    return [int(label) for label in np.random.default_rng(_SEED).permutation(np.array(labels))]
