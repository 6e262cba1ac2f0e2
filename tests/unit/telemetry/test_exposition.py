from __future__ import annotations

import math

from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from fleetbeat_worker.telemetry import metrics
from fleetbeat_worker.telemetry.exposition import Readings, expose
from fleetbeat_worker.telemetry.metrics import COUNTED, GAUGES, PLACES

NOTHING = [0.0] * sum(metric.width for metric in COUNTED)


def families(totals: list[float], readings: Readings) -> dict[str, Metric]:
    body, content_type = expose(totals, readings, "text/plain")
    assert content_type.startswith("text/plain; version=")
    return {family.name: family for family in parser.text_string_to_metric_families(body.decode())}


def test_every_metric_can_be_read() -> None:
    """Prometheus's own parser reads all names, types and meanings, in the old format and in OpenMetrics."""
    readings: Readings = {gauge.name: dict.fromkeys(gauge.values or [""], 1.0) for gauge in GAUGES}
    found = families(NOTHING, readings)
    assert {name.removesuffix("_total") for name in (metric.name for metric in (*COUNTED, *GAUGES))} == set(found)
    assert all(found[metric.name.removesuffix("_total")].documentation == metric.meaning for metric in COUNTED)
    body, content_type = expose(NOTHING, readings, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    read = list(openmetrics_parser.text_string_to_metric_families(body.decode()))
    assert {family.name for family in read} == set(found)


def test_a_counter_has_each_value_of_its_label() -> None:
    """Also values that never occurred: a rate needs an initial zero."""
    totals = NOTHING.copy()
    totals[PLACES[metrics.INGESTED.name]] = 7
    samples = families(totals, {})["fleetbeat_ingested"].samples
    assert {sample.labels["kind"]: sample.value for sample in samples} == {
        "heartbeat": 7,
        "register": 0,
        "deregister": 0,
    }


def test_a_histogram_is_cumulative() -> None:
    """Each bucket includes the smaller ones, and the last one is the count."""
    totals = NOTHING.copy()
    place = PLACES[metrics.BATCH_MESSAGES.name]
    totals[place : place + 2] = [4, 2]
    end = place + metrics.BATCH_MESSAGES.width
    totals[end - 2 : end] = [1, 30_010]
    samples = families(totals, {})["fleetbeat_batch_messages"].samples
    buckets = {float(sample.labels["le"]): sample.value for sample in samples if "le" in sample.labels}
    assert (buckets[1], buckets[3], buckets[10_000], buckets[math.inf]) == (4, 6, 6, 7)
    rest = {sample.name: sample.value for sample in samples if "le" not in sample.labels}
    assert rest == {"fleetbeat_batch_messages_count": 7, "fleetbeat_batch_messages_sum": 30_010}


def test_unknown_values_are_absent() -> None:
    """A gauge that can't be read has no value; known states of a gauge that can are shown as 0."""
    found = families(NOTHING, {metrics.WORKERS.name: {"busy": 2.0}, metrics.UP.name: {"redis": 1.0}})
    assert "fleetbeat_backlog" not in found
    workers = {sample.labels["state"]: sample.value for sample in found["fleetbeat_workers"].samples}
    assert workers == {"idle": 0, "busy": 2}
