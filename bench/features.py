"""What attackers make of a trace: the features of the field's attacks, as rows of numbers. Pure.

k-FP        Hayes and Danezis 2016: counts, order, concentration, bursts; gaps, rates and quantiles of time
CUMUL       Panchenko and others 2016: totals, and the cumulative sum at a hundred places (a cell counts as one)
TAM         Shen and others 2023 (RF): how many cells of each direction in each slot of time
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cells import OUT, Cell
from numpy.typing import NDArray

Row = NDArray[np.float64]

_ENDS = 30
_CHUNK = 20
_CHUNKS = 60
_PLACES = 100
_QUANTILES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)
_FIRST = 40  # the times of the first so many cells towards the client
SLOT_S = 0.05
MOST_SLOTS = 600


def split(trace: Sequence[Cell]) -> tuple[Row, Row]:
    """Times and directions."""
    return np.array([cell.at_s for cell in trace], float), np.array([cell.direction for cell in trace], float)


def kfp_without_time(trace: Sequence[Cell]) -> Row:
    """Counts, order, concentration and bursts."""
    _, ways = split(trace)
    going_out = ways == OUT
    places_out, places_in = np.flatnonzero(going_out), np.flatnonzero(~going_out)
    edges = np.flatnonzero(np.diff(ways)) + 1
    bursts = np.diff(np.concatenate(([0], edges, [len(ways)])))
    bursts_in = bursts[1::2] if len(ways) and going_out[0] else bursts[::2]
    bursts_out = bursts[::2] if len(ways) and going_out[0] else bursts[1::2]
    chunks = [going_out[at : at + _CHUNK].sum() for at in range(0, _CHUNK * _CHUNKS, _CHUNK)]
    return np.concatenate(
        [
            [len(ways), going_out.sum(), (~going_out).sum(), going_out.mean() if len(ways) else 0],
            *([going_out[:_ENDS].sum(), going_out[-_ENDS:].sum()],),
            *(_moments(places) for places in (places_out, places_in)),
            *(_moments(each) for each in (bursts_out, bursts_in)),
            *([len(each), (each > 5).sum(), (each > 10).sum(), (each > 15).sum()] for each in (bursts_out, bursts_in)),
            _fixed(bursts_in, 20),
            _moments(np.array(chunks)),
            chunks,
        ]
    )


def time_only(trace: Sequence[Cell]) -> Row:
    """When, not how many: no feature here counts cells."""
    times, ways = split(trace)
    rows = []
    for some in (times, times[ways == OUT], times[ways != OUT]):
        rows += [_quantiles(some), _moments(np.diff(some)), _quantiles(np.diff(some))]
    return np.concatenate([*rows, _fixed(times[ways != OUT], _FIRST)])


def kfp(trace: Sequence[Cell]) -> Row:
    """All of it: also cells per second, and their course."""
    times, _ = split(trace)
    seconds = np.bincount(times.astype(int), minlength=1) if len(times) else np.zeros(1)
    alternative = np.array([part.sum() for part in np.array_split(seconds, 10)])
    return np.concatenate([kfp_without_time(trace), time_only(trace), _moments(seconds), alternative])


def cumul(trace: Sequence[Cell]) -> Row:
    """Towards the client counts up."""
    _, ways = split(trace)
    sums = np.cumsum(-ways) if len(ways) else np.zeros(1)
    places = np.interp(np.linspace(0, len(sums) - 1, _PLACES), np.arange(len(sums)), sums)
    return np.concatenate([[(ways != OUT).sum(), (ways == OUT).sum(), len(ways), sums[-1]], places])


def tam(trace: Sequence[Cell]) -> Row:
    """Slots of a fixed length; what comes after the last one counts in it."""
    times, ways = split(trace)
    slots = np.minimum((times / SLOT_S).astype(int), MOST_SLOTS - 1)
    return np.concatenate([np.bincount(slots[ways == way], minlength=MOST_SLOTS) for way in (OUT, -OUT)]).astype(float)


def size(trace: Sequence[Cell]) -> Row:
    """How many cells, in all."""
    return np.array([len(trace)], float)


def _moments(values: Row) -> Row:
    if not len(values):
        return np.zeros(5)
    return np.array([values.mean(), values.std(), np.median(values), values.max(), values.min()], float)


def _quantiles(values: Row) -> Row:
    return np.quantile(values, (*_QUANTILES, 1.0)) if len(values) else np.zeros(len(_QUANTILES) + 1)


def _fixed(values: Row, count: int) -> Row:
    """The first so many, zeros where there are fewer."""
    return np.pad(np.asarray(values[:count], float), (0, max(0, count - len(values))))
