"""Exposition: the counters of one pool and the gauges of the fleet, in Prometheus's formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, product
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from fleetbeat_worker.telemetry.metrics import COUNTED, GAUGES, PLACES, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from prometheus_client import Metric

Readings = dict[str, dict[str, float]]
"""The values of each gauge by its name, and by the value of its label or ''. Unknown values are absent."""


def expose(totals: Sequence[float], readings: Readings, accept: str) -> tuple[bytes, str]:
    """Encode the metrics in the format that the `Accept` header prefers; return that with its content type."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(totals, readings))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Snapshot(Collector):
    """All metrics at one time."""

    def __init__(self, totals: Sequence[float], readings: Readings) -> None:
        self._totals = totals
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its samples."""
        for metric in COUNTED:
            place = PLACES[metric.name]
            numbers = self._totals[place : place + metric.width]
            yield _counter(metric, numbers) if isinstance(metric, Counter) else _histogram(metric, numbers)
        for gauge in GAUGES:
            found = self._readings.get(gauge.name)
            if found is not None:
                yield _gauge(gauge, found)


def _counter(counter: Counter, numbers: Sequence[float]) -> Metric:
    labels = [label for label in (counter.label, counter.second_label) if label]
    family = CounterMetricFamily(counter.name, counter.meaning, labels=labels)
    for values, number in zip(product(counter.values, counter.second_values), numbers, strict=True):
        family.add_metric(values[: len(labels)], number)
    return family


def _histogram(histogram: Histogram, numbers: Sequence[float]) -> Metric:
    *buckets, total = numbers
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    family = HistogramMetricFamily(histogram.name, histogram.meaning)
    family.add_metric([], list(zip(bounds, accumulate(buckets), strict=True)), total)
    return family


def _gauge(gauge: Gauge, found: Mapping[str, float]) -> Metric:
    labels = [gauge.label] if gauge.label else []
    family = GaugeMetricFamily(gauge.name, gauge.meaning, labels=labels)
    for value, number in (dict.fromkeys(gauge.values, 0.0) | dict(found)).items():
        family.add_metric([value] if labels else [], number)
    return family
