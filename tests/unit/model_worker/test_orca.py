from __future__ import annotations

import contextlib
import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from shoal.model_worker.metrics import LoadMeter, WorkerMetrics
from shoal.model_worker.orca import DEFAULT_INTERVAL_S, LoadReport, decode_interval_s, encode_report
from shoal.model_worker.scheduler import SchedulerStats


def report_class() -> type:
    """xds.data.orca.v3.OrcaLoadReport's fields that are sent, as protobuf itself reads them."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="orca_for_test.proto", package="orca_for_test", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    entry = message.nested_type.add(name="NamedMetricsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    message.field.add(name="rps_fractional", number=6, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    message.field.add(name="eps", number=7, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    message.field.add(
        name="named_metrics",
        number=8,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".orca_for_test.OrcaLoadReport.NamedMetricsEntry",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("orca_for_test.OrcaLoadReport"))


OrcaLoadReport = report_class()


@given(rps=st.floats(0, 1e9), eps=st.floats(0, 1e6), kv_cache=st.floats(0, 1), queue=st.floats(0, 100))
def test_reports_are_what_protobuf_reads_and_never_zero(rps: float, eps: float, kv_cache: float, queue: float) -> None:
    message = OrcaLoadReport.FromString(encode_report(LoadReport(rps, eps, kv_cache, queue)))  # type: ignore[attr-defined]
    assert message.rps_fractional == max(1.0, rps)
    assert message.eps == eps
    assert dict(message.named_metrics) == {"kv_cache": max(0.01, kv_cache), "queue": max(0.01, queue)}


@pytest.mark.parametrize(
    ("interval", "expected_s"),
    [(Duration(seconds=2, nanos=500_000_000), 2.5), (Duration(nanos=1), 0.1), (Duration(seconds=9999), 60.0)],
)
def test_the_asked_interval_is_kept_within_bounds(interval: Duration, expected_s: float) -> None:
    body = interval.SerializeToString()
    assert decode_interval_s(b"\x0a" + bytes([len(body)]) + body) == expected_s


def test_other_fields_are_skipped_and_no_interval_means_the_default() -> None:
    assert decode_interval_s(b"") == DEFAULT_INTERVAL_S
    assert decode_interval_s(b"\x12\x03cpu" + b"\x18\x96\x01" + b"\x21" + struct.pack("<d", 1)) == DEFAULT_INTERVAL_S


@given(st.binary(max_size=40))
def test_garbage_is_an_error_or_a_sane_interval(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert 0.1 <= decode_interval_s(data) <= 60


def test_a_cut_message_is_refused() -> None:
    with pytest.raises(ValueError, match="cut short"):
        decode_interval_s(b"\x0a\x05\x08")


def test_the_meter_gives_rates_between_readings() -> None:
    metrics = WorkerMetrics()
    meter = LoadMeter(metrics)
    metrics.stats = SchedulerStats(generated_tokens=500)
    metrics.failed("RESOURCE_EXHAUSTED")
    metrics.failed("INVALID_ARGUMENT")
    tokens_per_s, errors_per_s = meter.read()
    assert tokens_per_s / errors_per_s == 500
    assert meter.read() == (0.0, 0.0)
