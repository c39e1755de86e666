"""What a run says: accuracies next to chance and bound, controls, cost; as an object, as text, as a picture."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import attacks
from attacks import ATTACKS, Accuracy
from cells import CELL_BYTES, Cell
from intervals import percentile
from journal import Journal, Made

from bento_tor.errors import BentoError

LEAST_UNDEFENDED = 0.9
# Cells that tor counted and the recorder did not, or the other way round, of all that were compared.
_MOST_MISCOUNTED = 0.001
SHUFFLED = "k-FP"

Pair = tuple[Made, list[Cell]]


@dataclass(frozen=True)
class Alike:
    """Of a condition with several classes the visits of the largest: by design they look alike, and nobody tells more
    of them than by chance. `best`: the attack that did best."""

    sites: int
    visits: int
    best: tuple[str, Accuracy]

    @property
    def chance(self) -> float:
        """Of a guess."""
        return 1 / self.sites


@dataclass(frozen=True)
class Finding:
    """One condition. `bounded`: what can be seen comes in classes, and no attacker can do better than `bound`; else
    that is 1."""

    name: str
    visits: int
    accuracies: dict[str, Accuracy]
    shuffled: Accuracy
    bounded: bool
    bound: float
    classes: int
    maybe_alike: Alike | None
    maybe_told_from_direct: Accuracy | None
    failed: int
    p50_s: float
    p95_s: float
    link_p50_s: float
    in_per_page_byte: float
    out_per_page_byte: float
    mean_in_bytes: float
    mean_out_bytes: float

    @property
    def best(self) -> tuple[str, Accuracy]:
        """The attack that did best."""
        return _best(self.accuracies)


@dataclass(frozen=True)
class Findings:
    """All of a run."""

    sites: int
    visits: int
    conditions: list[Finding]
    compared_cells: int
    miscounted_cells: int
    compared_visits: int

    @property
    def chance(self) -> float:
        """Of a guess."""
        return 1 / self.sites

    def void_because(self) -> list[str]:
        """Controls that do not hold: then nothing else counts."""
        found = []
        direct = next((each for each in self.conditions if each.name == "direct"), None)
        if direct is None or direct.best[1].mean < LEAST_UNDEFENDED:
            found.append(f"undefended pages are not told apart in {LEAST_UNDEFENDED:.0%} of visits: weak attacks")
        found += [
            f"{each.name}: labels that were shuffled are told better or worse than by chance"
            for each in self.conditions
            if each.shuffled.surely_not(self.chance, each.visits)
        ]
        if not self.compared_cells or self.miscounted_cells > _MOST_MISCOUNTED * self.compared_cells:
            found.append(f"tor counts other cells: {self.miscounted_cells} of {self.compared_cells}")
        return found

    def leaks(self) -> list[str]:
        """Conditions in which more is told than what can be seen by design: something else can be seen."""
        return [each.name for each in self.conditions if each.best[1].low > each.bound]


def find(
    journal: Journal,
    names: Sequence[str],
    sites: int,
    bounded: frozenset[str],
    say: Callable[[str], None],
    trees: int = attacks.TREES,
) -> Findings:
    """Attack every condition. Only as many visits of each page as every condition has are used. Raises BentoError where
    there are too few of them."""
    kept = {name: journal.traces(name) for name in names}
    visits = min(len(own) for pairs in kept.values() for own in _by_site(pairs, sites))
    kept = {name: [pair for own in _by_site(pairs, sites) for pair in own[:visits]] for name, pairs in kept.items()}
    if visits < 2 or sites < 2:
        raise BentoError("two visits of two pages are the least in each condition that anything can be learned from")
    direct = [trace for _, trace in kept.get("direct", [])]
    found = []
    for name in names:
        say(f"attacking {name}")
        failed = sum(made.failed and made.condition == name for made in journal.made)
        found.append(_finding(name, kept[name], direct, sites, failed, trees, bounded=name in bounded))
    told = [made for made in journal.good if made.told_in >= 0]
    return Findings(
        sites,
        visits,
        found,
        sum(made.told_in for made in told),
        sum(abs(made.told_in - made.cells_in) for made in told),
        len(told),
    )


def _by_site(pairs: list[Pair], sites: int) -> list[list[Pair]]:
    """The visits of each page, in their order."""
    found: list[list[Pair]] = [[] for _ in range(sites)]
    for pair in sorted(pairs, key=lambda pair: pair[0].number):
        found[pair[0].site].append(pair)
    return found


def _finding(
    name: str, pairs: list[Pair], direct: list[list[Cell]], sites: int, failed: int, trees: int, *, bounded: bool
) -> Finding:
    traces, labels = [trace for _, trace in pairs], [made.site for made, _ in pairs]
    made = [each for each, _ in pairs]
    classes = len({each.observed for each in made})
    seconds = sorted(each.seconds for each in made)
    page = sum(each.page_bytes for each in made)
    came, went = (CELL_BYTES * sum(getattr(each, key) for each in made) for key in ("cells_in", "cells_out"))
    return Finding(
        name=name,
        visits=len(made),
        accuracies=_judge_all(traces, labels, trees),
        shuffled=attacks.judge(attacks.BY_NAME[SHUFFLED], traces, attacks.shuffled(labels), trees=trees),
        bounded=bounded,
        bound=min(1.0, classes / sites) if bounded else 1.0,
        classes=classes,
        maybe_alike=_alike(pairs, trees) if bounded and classes > 1 else None,
        maybe_told_from_direct=None if name == "direct" or not direct else told_apart(direct, traces, trees),
        failed=failed,
        p50_s=statistics.median(seconds),
        p95_s=percentile(seconds, 0.95),
        link_p50_s=statistics.median(trace[-1].at_s for trace in traces),
        in_per_page_byte=came / page,
        out_per_page_byte=went / page,
        mean_in_bytes=came / len(made),
        mean_out_bytes=went / len(made),
    )


def _alike(pairs: list[Pair], trees: int) -> Alike | None:
    """None where too few visits, or pages, look alike."""
    ((largest, _),) = Counter(made.observed for made, _ in pairs).most_common(1)
    kept = [(made, trace) for made, trace in pairs if made.observed == largest]
    visits = Counter(made.site for made, _ in kept)
    kept = [(made, trace) for made, trace in kept if visits[made.site] >= attacks.MOST_FOLDS]
    traces, labels = [trace for _, trace in kept], [made.site for made, _ in kept]
    if len(set(labels)) < 2:
        return None
    return Alike(len(set(labels)), len(kept), _best(_judge_all(traces, labels, trees)))


def _judge_all(traces: list[list[Cell]], labels: list[int], trees: int) -> dict[str, Accuracy]:
    return {attack.name: attacks.judge(attack, traces, labels, trees=trees) for attack in ATTACKS}


def _best(accuracies: dict[str, Accuracy]) -> tuple[str, Accuracy]:
    return max(accuracies.items(), key=lambda pair: pair[1].mean)


def told_apart(some: list[list[Cell]], others: list[list[Cell]], trees: int) -> Accuracy:
    """Whether it can be told which of the two a trace is of, whatever page it is: by chance in half of the cases."""
    labels = [0] * len(some) + [1] * len(others)
    return attacks.judge(attacks.BY_NAME["k-FP"], [*some, *others], labels, trees=trees)


# --- said --------------------------------------------------------------------------------------------------------


def as_object(found: Findings) -> dict[str, object]:
    """For `--json`."""
    figures: dict[str, object] = {
        "sites": found.sites,
        "visits": found.visits,
        "chance": round(found.chance, 4),
        "cells_compared": found.compared_cells,
        "cells_miscounted": found.miscounted_cells,
        "visits_compared": found.compared_visits,
        "void_because": found.void_because(),
        "leaks": found.leaks(),
    }
    for each in found.conditions:
        figures[each.name] = {
            "visits": each.visits,
            "best": each.best[0],
            **{name: _triple(accuracy) for name, accuracy in each.accuracies.items()},
            "shuffled": _triple(each.shuffled),
            "bound": round(each.bound, 4),
            "classes": each.classes,
            "rarity": each.bounded and round(each.best[1].rarity(each.bound, each.visits), 4),
            "alike": each.maybe_alike and _alike_object(each.maybe_alike),
            "told_from_direct": each.maybe_told_from_direct and _triple(each.maybe_told_from_direct),
            "failed_visits": each.failed,
            "last_byte_p50_s": round(each.p50_s, 2),
            "last_byte_p95_s": round(each.p95_s, 2),
            "link_busy_p50_s": round(each.link_p50_s, 2),
            "mean_bytes_in": round(each.mean_in_bytes),
            "mean_bytes_out": round(each.mean_out_bytes),
        }
    ratios: dict[str, float] = {}
    for each in found.conditions:
        ratios[f"{each.name}_accuracy_over_chance"] = round(each.best[1].mean / found.chance, 2)
        ratios[f"{each.name}_bytes_in_over_page"] = round(each.in_per_page_byte, 3)
        ratios[f"{each.name}_bytes_out_over_page"] = round(each.out_per_page_byte, 3)
    return {"name": "fingerprint", "figures": figures, "ratios": ratios}


def _alike_object(alike: Alike) -> dict[str, object]:
    attack, accuracy = alike.best
    rarity = round(accuracy.rarity(alike.chance, alike.visits), 4)
    pages = {"sites": alike.sites, "visits": alike.visits}
    return {**pages, "best": attack, "accuracy": _triple(accuracy), "rarity": rarity}


def _triple(accuracy: Accuracy) -> list[float]:
    return [round(value, 4) for value in (accuracy.mean, accuracy.low, accuracy.high)]


def as_text(found: Findings) -> str:
    """For people."""
    lines = [
        f"{found.sites} pages, {found.visits} visits of each in each condition; chance {found.chance:.1%}; in percent: "
        "mean (95 % interval over the folds)",
        "",
    ]
    for each in found.conditions:
        name, best = each.best
        bound = f"bound {each.bound:.1%} ({each.classes} classes)" if each.bounded else "no bound"
        word = "contains chance" if best.contains(found.chance) else "does not contain chance"
        lines.append(f"{each.name}: best {_percent(best)} by {name}; {bound}; the interval {word}")
        for attack, accuracy in each.accuracies.items():
            lines.append(f"    {attack:20} {_percent(accuracy)}")
        lines.append(f"    {'labels shuffled':20} {_percent(each.shuffled)}")
        if each.bounded:
            lines.append(f"    {_by_luck(best, each.bound, each.visits)}")
        if each.maybe_alike is not None:
            alike, (attack, accuracy) = each.maybe_alike, each.maybe_alike.best
            lines.append(
                f"    {alike.visits} visits of {alike.sites} pages that look alike by design: best "
                f"{_percent(accuracy)} by {attack}, by chance {alike.chance:.1%}; "
                f"{_by_luck(accuracy, alike.chance, alike.visits)}"
            )
        if each.maybe_told_from_direct is not None:
            lines.append(f"    {'told from direct':20} {_percent(each.maybe_told_from_direct)}, by chance 50")
        lines.append(
            f"    last byte after {each.p50_s:.2f} s (p95 {each.p95_s:.2f}); link busy for {each.link_p50_s:.2f} s; "
            f"bytes in {each.in_per_page_byte:.2f} and out {each.out_per_page_byte:.2f} per byte of page; "
            f"{each.failed} failed"
        )
    share = f"{found.miscounted_cells} of {found.compared_cells} cells in {found.compared_visits} visits"
    lines += ["", f"cells that tor counted otherwise: {share}"]
    lines += [f"VOID: {why}" for why in found.void_because()]
    lines += [f"LEAK: {name}: more is told than its classes allow" for name in found.leaks()]
    return "\n".join(lines)


def _by_luck(best: Accuracy, chance: float, visits: int) -> str:
    rarity = min(1.0, len(ATTACKS) * best.rarity(chance, visits))  # Bonferroni's bound
    right = f"{round(best.mean * visits)} of {visits}"
    return f"{right}: the best of {len(ATTACKS)} has such luck once in {1 / rarity:.3g} runs at {chance:.1%}"


def _percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.mean:5.1f} ({100 * accuracy.low:.1f} - {100 * accuracy.high:.1f})"


# --- drawn -------------------------------------------------------------------------------------------------------


def draw(found: Findings, path: Path) -> None:
    """Accuracies next to chance and bound, and what they cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, middle, below) = pyplot.subplots(
        3, 1, figsize=(11, 11), sharex=True, height_ratios=[3, 1.2, 1.2], layout="constrained"
    )
    places = range(len(found.conditions))
    step = 0.8 / len(ATTACKS)
    for number, attack in enumerate(ATTACKS):
        at = [place + (number - (len(ATTACKS) - 1) / 2) * step for place in places]
        each = [condition.accuracies[attack.name] for condition in found.conditions]
        means = [100 * accuracy.mean for accuracy in each]
        reach = [
            [100 * (accuracy.mean - accuracy.low) for accuracy in each],
            [100 * (accuracy.high - accuracy.mean) for accuracy in each],
        ]
        above.bar(at, means, step * 0.9, yerr=reach, capsize=2, error_kw={"linewidth": 0.8}, label=attack.name)
    above.axhline(100 * found.chance, color="black", linestyle=":", linewidth=1, label=f"chance {found.chance:.1%}")
    label = "bound B/N"
    for place, condition in zip(places, found.conditions, strict=True):
        if condition.bounded:
            above.hlines(100 * condition.bound, place - 0.45, place + 0.45, color="red", label=label)
            label = None
    above.set_ylabel("pages told right, %")
    above.set_ylim(0, 105)
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", fontsize=8, ncols=4)
    above.set_title(
        f"{found.sites} synthetic pages, {found.visits} visits each, closed world; 95 % intervals over folds"
    )
    for offset, key, label in ((-0.2, "in_per_page_byte", "in"), (0.2, "out_per_page_byte", "out")):
        heights = [getattr(condition, key) for condition in found.conditions]
        bars = middle.bar([place + offset for place in places], heights, 0.4, label=label)
        middle.bar_label(bars, fmt="%.2f", fontsize=8)
    middle.set_ylabel("bytes on the link\nper byte of page")
    middle.legend(fontsize=8)
    middle.margins(y=0.15)
    for offset, key, label in ((-0.2, "p50_s", "median"), (0.2, "p95_s", "95 of 100")):
        heights = [getattr(condition, key) for condition in found.conditions]
        bars = below.bar([place + offset for place in places], heights, 0.4, label=label)
        below.bar_label(bars, fmt="%.1f", fontsize=8)
    below.set_ylabel("seconds to the\nlast byte of the page")
    below.legend(fontsize=8)
    below.margins(y=0.15)
    below.set_xticks(list(places), [condition.name for condition in found.conditions])
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
