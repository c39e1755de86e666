"""A run's folder, its order, its corpus, and what is said of it; without Tor."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import replace

import findings
import fingerprint
import pytest
import sites
from cells import IN, OUT, Cell
from journal import Journal, Made, Visit, open_journal, plan
from visits import make_conditions, named_in

from bento_tor.client.cover import Pace
from bento_tor.errors import BentoError, ConfigError

TRACE = [Cell(5.0, OUT), Cell(5.5, IN)]


def made(condition: str = "direct", site: int = 0, number: int = 0, outcome: str = "page", **more: object) -> Made:
    file = f"{condition}/{site}-{number}.cell"
    return Made(condition, site, number, outcome, file, page_bytes=1000, seconds=1.0, cells_in=1, cells_out=1, **more)


def test_every_condition_has_as_many_visits_of_each_page_and_none_its_own_time() -> None:
    wanted = plan(["direct", "browser"], 5, 8, 1)
    assert wanted == plan(["direct", "browser"], 5, 8, 1) != plan(["direct", "browser"], 5, 8, 2)
    assert set(Counter((visit.condition, visit.site) for visit in wanted).values()) == {8}
    assert len(set(wanted)) == 80
    for condition in ("direct", "browser"):
        places = [place for place, visit in enumerate(wanted) if visit.condition == condition]
        assert 30 < statistics.mean(places) < 50, "one condition comes before the other"


def test_a_run_that_was_stopped_goes_on_and_repeats_nothing(tmp_path) -> None:
    wanted = plan(["direct"], 2, 2, 1)
    journal = open_journal(tmp_path, {"sites": 2})
    first = wanted[0]
    journal.add(made(site=first.site, number=first.number), TRACE)
    again = open_journal(tmp_path, {"sites": 2})
    assert again.left(wanted) == wanted[1:]
    assert [(each.file, trace) for each, trace in again.traces("direct")] == [
        (f"direct/{first.name}.cell", [Cell(0.0, OUT), Cell(0.5, IN)])
    ]


def test_a_line_that_was_cut_is_made_again(tmp_path) -> None:
    journal = open_journal(tmp_path, {})
    journal.add(made(number=0), TRACE)
    journal.add(made(number=1), TRACE)
    lines = (tmp_path / "visits.jsonl").read_text()
    for cut in range(len(lines.splitlines()[0]) + 2, len(lines)):
        (tmp_path / "visits.jsonl").write_text(lines[:cut])
        journal = Journal(tmp_path)
        assert [each.number for each in journal.good] == [0]
        journal.add(made(number=2), TRACE)
        assert [each.number for each in Journal(tmp_path).good] == [0, 2]


def test_a_visit_that_failed_is_kept_and_made_again(tmp_path) -> None:
    journal = open_journal(tmp_path, {})
    visit = Visit("direct", 0, 0)
    for number in range(2):
        place = journal.place(visit, failed=True)
        assert place == f"direct/failed/0-0-{number}.cell"
        journal.add(Made("direct", 0, 0, "failed", place, why="it broke"), TRACE)
    assert journal.left([visit]) == [visit] and journal.tries(visit) == 2
    assert journal.traces("direct") == []
    assert len(list((tmp_path / "direct" / "failed").iterdir())) == 2


def test_a_folder_of_another_run_is_not_touched(tmp_path) -> None:
    open_journal(tmp_path, {"sites": 20, "seed": 1})
    with pytest.raises(ConfigError, match="begun with another sites"):
        open_journal(tmp_path, {"sites": 10, "seed": 1})


def test_the_time_left_is_that_of_the_conditions_left() -> None:
    before = [made("direct", took_s=1.0), made("cover", took_s=60.0), made("cover", number=1, took_s=60.0)]
    assert fingerprint.time_left(before, [Visit("cover", 0, number) for number in range(5)]) == "about 5 minutes"
    assert fingerprint.time_left([], [Visit("cover", 0, 0)]) == "about 0 minutes"


def test_the_corpus_is_the_same_each_time_and_of_different_sizes() -> None:
    pages = sites.make_sites(20, 1)
    assert pages == sites.make_sites(20, 1) != sites.make_sites(20, 2)
    assert [page.kind for page in pages[-3:]] == ["missing", "mute", "slow"]
    sizes = [page.size for page in pages]
    assert max(sizes) <= sites.MOST_BYTES and max(sizes) > 4 * min(size for size in sizes if size)
    assert len({page.url for page in pages}) == 20


def test_a_page_names_all_its_parts_and_is_as_long_as_it_says() -> None:
    for page in sites.make_sites(20, 1):
        bodies = [sites.content(page, part) for part in page.parts]
        assert [len(body) for body in bodies] == [part.size for part in page.parts]
        texts = bodies[: 1 + len(page.sheets)]
        named = [url.rpartition("/")[2] for body in texts for url in named_in(body)]
        assert sorted(named) == sorted(part.name for part in page.parts[1:])


def test_only_what_comes_in_classes_has_a_bound() -> None:
    conditions = make_conditions(2.0, Pace.of(1000, 1))
    assert [name for name, each in conditions.items() if each.bounded] == ["grid-256k", "grid-1m", "cover"]


def find(journal: Journal) -> findings.Findings:
    return findings.find(journal, ["direct", "cover"], 2, frozenset({"cover"}), lambda text: None, trees=20)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> findings.Findings:
    """Two pages that differ undefended, and are alike under cover."""
    journal = open_journal(tmp_path_factory.mktemp("run"), {})
    for number in range(5):
        for site in range(2):
            for condition in ("direct", "cover"):
                count = 50 + 100 * site * (condition == "direct")
                trace = [Cell(0.0, OUT), *(Cell(0.1 + 0.001 * at, IN) for at in range(count))]
                journal.add(made(condition, site, number, observed="cover", told_in=1), trace)
    return find(journal)


def test_a_run_is_judged_and_drawn(found, tmp_path) -> None:
    direct, cover = found.conditions
    assert (direct.best[1].mean, direct.bound) == (1.0, 1.0)
    assert (cover.bound, cover.classes) == (0.5, 1) and cover.best[1].mean <= 0.7
    assert (found.compared_cells, found.miscounted_cells, found.compared_visits) == (20, 0, 20)
    assert found.void_because() == [] and found.leaks() == []
    told = json.loads(json.dumps(findings.as_object(found)))
    assert told["figures"]["cover"]["bound"] == 0.5 and told["ratios"]["direct_accuracy_over_chance"] == 2.0
    assert "no bound" in findings.as_text(found)
    findings.draw(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_looks_alike_by_design_is_judged_by_itself(tmp_path) -> None:
    """Two pages of one class, which are the same, and a third of another, which is told from them."""
    journal = open_journal(tmp_path, {})
    for number in range(5):
        for site in range(3):
            trace = [Cell(0.0, OUT), *(Cell(0.1 + 0.001 * at, IN) for at in range(50 + 100 * (site == 2)))]
            for condition in ("direct", "cover"):
                journal.add(made(condition, site, number, observed=f"class {site == 2}", told_in=1), trace)
    names, bounded = ["direct", "cover"], frozenset({"cover"})
    direct, cover = findings.find(journal, names, 3, bounded, lambda text: None, trees=20).conditions
    alike = cover.maybe_alike
    assert (cover.classes, cover.bound, direct.maybe_alike) == (2, 2 / 3, None) and alike is not None
    assert (alike.sites, alike.visits) == (2, 10) and alike.best[1].mean <= 0.7


def test_a_run_is_void_where_a_control_does_not_hold(found) -> None:
    direct, cover = found.conditions
    (why,) = replace(found, miscounted_cells=1).void_because()
    assert why == "tor counts other cells: 1 of 20"
    assert "counts other" in replace(found, compared_cells=0, compared_visits=0).void_because()[0]
    assert "weak attacks" in replace(found, conditions=[cover]).void_because()[0]
    cheat = replace(direct, visits=40, shuffled=direct.best[1])
    assert "shuffled" in replace(found, conditions=[cheat, cover]).void_because()[0]


def test_more_than_the_bound_is_a_leak(found) -> None:
    direct, cover = found.conditions
    assert replace(found, conditions=[replace(direct, bound=0.5), cover]).leaks() == ["direct"]


def test_too_few_visits_are_a_sentence(tmp_path) -> None:
    with pytest.raises(BentoError, match="two visits"):
        find(open_journal(tmp_path, {}))
