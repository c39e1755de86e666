"""The attacks find what is there to be found, each of its kind, and nothing where there is nothing."""

from __future__ import annotations

import random

import attacks
import features
import numpy as np
import pytest
from attacks import ATTACKS, BY_NAME, Accuracy
from cells import IN, OUT, Cell

SITES, VISITS, TREES = 6, 6, 20
CHANCE = 1 / SITES


def trace(seed: str, *, cells: int = 200, begin_s: float = 0.3, spread_s: float = 0.001) -> list[Cell]:
    """A question, then an answer of so many cells, from that moment on."""
    chance = random.Random(seed)
    found = [Cell(0.0, OUT)]
    at = begin_s + chance.uniform(-0.02, 0.02)
    for number in range(cells + chance.randint(-2, 2)):
        at += chance.uniform(0, spread_s)
        found.append(Cell(at, OUT if number % 31 == 30 else IN))
    return found


def world(**of_site: list[float]) -> tuple[list[list[Cell]], list[int]]:
    """Visits of pages that differ in what is named."""
    traces, labels = [], []
    for site in range(SITES):
        for visit in range(VISITS):
            traces.append(trace(f"{site} {visit}", **{name: values[site] for name, values in of_site.items()}))
            labels.append(site)
    return traces, labels


SIZES = world(cells=[80, 140, 200, 260, 320, 380])
TIMES = world(begin_s=[0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
ALIKE = world()


def judged(name: str, given: tuple[list[list[Cell]], list[int]]) -> Accuracy:
    return attacks.judge(BY_NAME[name], *given, trees=TREES)


@pytest.mark.parametrize("name", ["k-FP", "k-FP without time", "CUMUL-SVM", "TAM and trees", "size, 1-NN"])
def test_pages_of_different_sizes_are_told_apart(name) -> None:
    assert judged(name, SIZES).mean > 0.75


@pytest.mark.parametrize("name", ["k-FP", "time only", "TAM and trees"])
def test_pages_that_come_at_different_times_are_told_apart_by_time(name) -> None:
    assert judged(name, TIMES).mean > 0.9


@pytest.mark.parametrize("name", ["k-FP without time", "CUMUL-SVM", "size, 1-NN"])
def test_and_not_by_what_does_not_look_at_it(name) -> None:
    assert judged(name, TIMES).mean < 0.5


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_pages_that_are_alike_are_told_by_chance_only(attack) -> None:
    assert not judged(attack.name, ALIKE).surely_not(CHANCE, SITES * VISITS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_labels_that_were_shuffled_are_told_by_chance_only(attack) -> None:
    traces, labels = SIZES
    mixed = attacks.shuffled(labels)
    assert sorted(mixed) == labels and mixed != labels
    assert not judged(attack.name, (traces, mixed)).surely_not(CHANCE, len(traces))


def test_the_control_can_fail() -> None:
    assert judged("k-FP", SIZES).surely_not(CHANCE, SITES * VISITS)


def test_no_trace_is_learned_from_and_tried_on(monkeypatch) -> None:
    learned: list[set[float]] = []

    class Cheat:
        """Knows by heart what it has seen, and nothing else."""

        def fit(self, rows: np.ndarray, labels: np.ndarray) -> None:
            learned.append({float(row[0]) for row in rows})
            self._known = {float(row[0]): label for row, label in zip(rows, labels, strict=True)}

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return np.array([self._known.get(float(row[0]), -1) for row in rows])

    labels = np.repeat(np.arange(SITES), VISITS)
    rows = np.arange(len(labels), dtype=float)[:, None]
    by_heart = attacks.Attack("by heart", features.size, lambda *_: Cheat())
    assert attacks.scores(by_heart, rows, labels) == [0.0] * attacks.MOST_FOLDS
    assert all(len(known) < len(labels) for known in learned)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize("some", [[], [Cell(0.0, OUT)], [Cell(0.0, IN)], [Cell(0.0, OUT), Cell(99.0, IN)]])
def test_every_trace_has_features_of_one_length_also_one_that_failed(attack, some) -> None:
    row = attack.look(some)
    assert row.shape == attack.look(ALIKE[0][0]).shape and np.isfinite(row).all()


def test_the_interval_is_students() -> None:
    found = attacks.interval([0.1, 0.2, 0.3, 0.2, 0.2])
    assert (round(found.mean, 3), round(found.low, 3), round(found.high, 3)) == (0.2, 0.112, 0.288)
    assert attacks.interval([1.0] * 5) == Accuracy(1.0, 1.0, 1.0)
    assert found.contains(0.25) and not found.contains(0.3)
