"""Prometheus metrics of one ingress replica, and the sum over all of them. Labels are few, and none comes from a client."""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serve.api.schemas import SearchAnswer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A hash answer takes 3 ms, a vector answer 20 to 50 ms on two cores; the time limit is 10 s.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PREFIX = "visual_search"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]  # name and sorted labels → value

# Shares since the start, from the counters; over time, divide the rates.
SHARES = {
    "hash_hit_frac": ("queries that the hash stage answered", "answers_total", {"stage": "hash"}, "answers_total"),
    "no_match_frac": ("queries without a good enough product", "no_match_total", {}, "answers_total"),
    "recall_at_10": ("of exact search, by the live probe", "probe_found_total", {}, "probe_expected_total"),
}


class Metrics:
    """Counts and times of this replica."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", says, labels, registry=registry)

        self.responses = counter("responses", "HTTP answers", "route", "status")
        self.seconds = Histogram(
            f"{PREFIX}_response_seconds", "from the first byte of a request to the last of its answer", ["route"],
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self.answers = counter("answers", "queries answered, by the stage that gave the answer", "stage")
        self.no_match = counter("no_match", "queries answered with no product")
        self.partial = counter("partial", "queries answered while a shard was missing")
        self.stage_seconds = Histogram(
            f"{PREFIX}_stage_seconds", "time a query spent in a stage", ["stage"], registry=registry, buckets=SECONDS
        )
        self.refused = counter("refused", "requests turned away before work", "reason")
        self.ongoing = Gauge(f"{PREFIX}_ongoing", "queries being answered now", registry=registry)
        self.waiting = Gauge(f"{PREFIX}_waiting", "queries that wait or are being received now", registry=registry)
        self.release = Gauge(
            f"{PREFIX}_release", "1 for each replica that answers from this release", ["release"], registry=registry
        )
        self.probes = counter("probe_queries", "queries run again exactly on the side")
        self.probe_expected = counter("probe_expected", "products of the exact top 10 of those queries")
        self.probe_found = counter("probe_found", "those of them that had been answered")

    def answered(self, answer: SearchAnswer) -> None:
        """Count one answer to a query."""
        self.answers.labels(answer.stage).inc()
        self.no_match.inc(answer.no_match)
        self.partial.inc(answer.partial)
        for stage, ms in answer.timings_ms.items():
            self.stage_seconds.labels(stage).observe(ms / 1000)

    def probed(self, found: int, expected: int) -> None:
        """Count one query that was run again exactly."""
        self.probes.inc()
        self.probe_found.inc(found)
        self.probe_expected.inc(expected)

    def serves(self, release_id: str) -> None:
        """Answers come from this release from now on."""
        self.release.clear()
        self.release.labels(release_id).set(1)

    def snapshot(self) -> list[Metric]:
        """Everything as it is now; pickles, so that replicas can be summed."""
        return list(self.registry.collect())


class _Given(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self.metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def exposition(replicas: Sequence[Sequence[Metric]]) -> bytes:
    """The sum of the replicas in Prometheus' text format, and the shares."""
    families: dict[str, Metric] = {}
    values: dict[str, Samples] = {}
    for metric in (metric for replica in replicas for metric in replica):
        families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
        sums = values.setdefault(metric.name, {})
        for sample in metric.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            sums[key] = sums.get(key, 0.0) + sample.value
    for name, sums in values.items():
        for (sample_name, labels), value in sums.items():
            families[name].add_sample(sample_name, dict(labels), value)
    everything = {key: value for sums in values.values() for key, value in sums.items()}
    return generate_latest(_Given([*families.values(), *shares(everything)]))


def shares(values: Samples) -> list[Metric]:
    """Gauges of SHARES; one without anything to divide by is left out."""

    def total(name: str, wanted: dict[str, str]) -> float:
        name = f"{PREFIX}_{name}"
        return sum(v for (sample, labels), v in values.items() if sample == name and wanted.items() <= dict(labels).items())

    gauges = []
    for name, (says, part, labels, whole) in SHARES.items():
        if total(whole, {}):
            gauge = Metric(f"{PREFIX}_{name}", f"share since the start: {says}", "gauge")
            gauge.add_sample(f"{PREFIX}_{name}", {}, total(part, labels) / total(whole, {}))
            gauges.append(gauge)
    return gauges
