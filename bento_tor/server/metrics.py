"""The box's metrics, as Prometheus reads them. docs/metrics.md names each; a test holds the two together.

What concerns sessions is shown as `totals` shows it: by default only full hours count, rounded, so that who keeps
these numbers does not keep the times of sessions. What is true just now is shown with `audit = true` only. Every series
is there from the start: one that appeared would tell of its first session. Owns no socket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from bento_tor import __version__
from bento_tor.policy import outcome
from bento_tor.server.audit import WORDS, Kind
from bento_tor.server.lookout import Sighting
from bento_tor.server.totals import START_BOUNDS, Totals

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Of a crash the signal is left out: some sixty series that are nearly always zero.
_OUTCOMES = tuple(kind.value for kind in outcome.Kind)
_EGRESS = ("exit", "tor")


class Live(msgspec.Struct, frozen=True):
    """What is true just now."""

    paused: bool
    running: int
    waiting: int
    connections: int


class Metrics(Collector):
    """All metrics of one box. `sighting`: what the keeper last said; `live`: how the box is now."""

    def __init__(self, totals: Totals, sighting: Callable[[], Sighting], live: Callable[[], Live]) -> None:
        self._totals = totals
        self._sighting = sighting
        self._live = live
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """In Prometheus's text form, of CONTENT_TYPE."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing that the registry could find twice: it is the only collector there."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each look."""
        yield InfoMetricFamily("bento_tor_box", "The version of bento-tor.", {"version": __version__})
        exact = self._totals.exact
        yield _gauge("exact", "1: audit = true, counts are exact; 0: full hours only, rounded.", exact)
        yield from self._counters()
        yield self._starts()
        yield self._traffic()
        yield from self._tor(self._sighting())
        yield from self._now(self._sighting(), self._live())

    def _counters(self) -> Iterator[Metric]:
        yield self._counter("sessions", "Sessions that have ended.", "outcome", Kind.END, _OUTCOMES)
        yield self._counter(
            "starts", "Sessions that have begun, by their sandbox: ready, or not.", "sandbox", Kind.START
        )
        yield self._counter(
            "refusals", "What clients were refused, by the code that they were told.", "code", Kind.REFUSAL
        )
        yield self._counter("limits", "Limits that were met, of sessions and of the box.", "limit", Kind.LIMIT)
        yield self._counter("egress_refusals", "What the egress broker stopped.", "reason", Kind.EGRESS)

    def _counter(self, name: str, text: str, label: str, kind: Kind, words: Iterable[str] = ()) -> Metric:
        family = CounterMetricFamily(f"bento_tor_{name}", text, labels=[label])
        counts = dict.fromkeys(words or sorted(WORDS[kind]), 0)
        for (found, word), count in self._totals.counts().items():
            if found == kind:
                shown = outcome.Kind.CRASHED.value if word.startswith(f"{outcome.Kind.CRASHED}:") else word
                counts[shown] = counts.get(shown, 0) + count
        for word, count in counts.items():
            family.add_metric([word], count)
        return family

    def _starts(self) -> Metric:
        waits, below = self._totals.waits(), 0
        buckets = []
        for bound, count in zip((*map(str, START_BOUNDS), "+Inf"), waits.counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        text = "Seconds from a client's order to a sandbox that runs its function."
        return HistogramMetricFamily("bento_tor_start_seconds", text, buckets=buckets, sum_value=waits.seconds)

    def _traffic(self) -> Metric:
        text = "Bytes of sessions that have ended, by class of egress."
        family = CounterMetricFamily("bento_tor_egress_bytes", text, labels=["egress", "direction"])
        for egress in _EGRESS:
            traffic = self._totals.traffic().get(egress)
            family.add_metric([egress, "out"], traffic.sent if traffic else 0)
            family.add_metric([egress, "in"], traffic.received if traffic else 0)
        return family

    def _tor(self, seen: Sighting) -> Iterator[Metric]:
        """Without samples where there is nothing to say: a box that no tor publishes has none."""
        tor = seen.maybe_tor
        relay = tor.maybe_relay if tor is not None else None
        up = None if tor is None and not seen.why else tor is not None
        yield _gauge("tor_up", "Whether the tor that has the onion service can be asked.", up)
        progress = tor.bootstrap / 100 if tor is not None else None
        yield _gauge("tor_bootstrap_ratio", "How far that tor is; 1: it can be used.", progress)
        circuits = tor.circuits if tor is not None else None
        yield _gauge("tor_circuits_up", "Whether that tor can build circuits.", circuits)
        published = tor.maybe_published if tor is not None else None
        yield _gauge("onion_published", "Whether that tor has a descriptor of the box's onion service.", published)
        listed = relay.listed if relay is not None else None
        yield _gauge("relay_listed", "Whether the consensus that it has names it, where it is a relay.", listed)

    def _now(self, seen: Sighting, live: Live) -> Iterator[Metric]:
        yield _gauge("paused", "1: the box takes no new work.", live.paused)
        exact = self._totals.exact
        for name, text, value in (
            ("sessions_running", "Sessions that run now.", live.running),
            ("sessions_waiting", "Sessions that have ended, with output for their readers.", live.waiting),
            ("connections", "Connections of clients now.", live.connections),
            ("pool_ready", "Sandboxes that wait ready now.", seen.ready),
        ):
            yield _gauge(name, f"{text} Only with audit = true.", value if exact else None)


def _gauge(name: str, text: str, maybe_value: float | None) -> Metric:
    """Without a sample for None."""
    return GaugeMetricFamily(f"bento_tor_{name}", text, value=None if maybe_value is None else float(maybe_value))
