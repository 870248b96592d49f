"""The flags that the planner gives are flags that the services take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.config import load
from shoal.gateway.config import Config as GatewayConfig
from shoal.kv_store.config import KvStoreConfig
from shoal.model_worker.config import WorkerConfig
from shoal.operator.api import load_manifest, parse_manifest
from shoal.operator.planner import ProcessPlan, plan
from shoal.tokenizer.config import TokenizerConfig
from support.manifests import EVERYTHING, observe

EXAMPLE = Path(__file__).parents[3] / "examples" / "two-workers.yaml"
CONFIGS: dict[str, type[Any]] = {
    "shoal.gateway.main": GatewayConfig,
    "shoal.kv_store.main": KvStoreConfig,
    "shoal.model_worker.main": WorkerConfig,
    "shoal.tokenizer.main": TokenizerConfig,
}
SERVICES = {
    "example": load_manifest(EXAMPLE),
    "gpu": load_manifest(EXAMPLE.with_name("qwen3-8b-gpu.yaml")),
    "everything": parse_manifest(EVERYTHING, "everything"),
}


def read_settings(process: ProcessPlan) -> dict[str, Any]:
    """As the process itself would."""
    module = process.argv[2]
    config = load(CONFIGS[module], program=module, argv=process.argv[3:], environ={})
    return {name: getattr(config, name) for name in type(config).__dataclass_fields__}


@pytest.mark.parametrize("name", SERVICES)
def test_services_take_their_flags(name: str) -> None:
    service = SERVICES[name]
    processes = [process for process in plan(service, observe(service)).processes if process.name != "envoy"]
    has_store = service.spec.kv_cache.cpu is not None
    assert {process.argv[2] for process in processes} == set(CONFIGS) - (
        set() if has_store else {"shoal.kv_store.main"}
    )
    for process in processes:
        settings = read_settings(process)
        assert settings["host"] == "127.0.0.1"
        assert settings["port"] == process.ports["grpc"]
        assert settings["metrics_port"] == process.ports["metrics"]
        assert settings["log_level"] == service.spec.observability.log_level
        assert settings["drain_timeout_s"] < process.drain_timeout_s


def test_spec_arrives() -> None:
    service = SERVICES["everything"]
    by_name = {process.name: process for process in plan(service, observe(service)).processes}
    worker = read_settings(by_name["worker-1"])
    assert (worker["model"], worker["served_model_name"]) == ("/cache/model", "org/model")
    assert (worker["dtype"], worker["load_format"], worker["max_model_len"]) == ("float32", "safetensors", 4096)
    assert (worker["threads"], worker["block_size"], worker["kv_cache_memory_bytes"]) == (2, 32, 1 << 30)
    assert (worker["max_num_seqs"], worker["max_num_batched_tokens"], worker["max_queued_requests"]) == (8, 256, 10)
    store = read_settings(by_name["kv-store"])
    assert worker["kv_store_socket"] == store["socket_path"]
    assert worker["kv_store_address"] == f"127.0.0.1:{store['port']}"
    assert (store["memory_bytes"], store["disk_bytes"], store["disk_folder"]) == (2 << 30, 10 << 30, "/disk/kv")
    assert (store["chunk_bytes"], store["disk_segment_bytes"]) == (64 << 20, 256 << 20)
    gateway = read_settings(by_name["gateway-1"])
    limits = ("max_queued_requests", "max_queued_tokens", "max_queue_s", "priority_step_s", "worker_queue_ratio")
    assert [gateway[name] for name in limits] == [1000, 20_000_000, 30, 2.5, 0.5]
    assert (gateway["flow_control"], gateway["num_gateways"]) == ("off", 2)
    assert (gateway["max_queued_requests_per_tenant"], gateway["max_queued_tokens_per_tenant"]) == (500, 10_000_000)
    assert gateway["tenant_weights"] == "gold=4.0,batch=0.5"
    assert gateway["tenant_max_queued_requests"] == "gold=800"
    assert gateway["tenant_max_queued_tokens"] == "gold=15000000"
    assert gateway["routing_policy"] == "least_load"
    assert gateway["api_keys_file"] == "/keys"
    assert gateway["mesh_address"] == f"127.0.0.1:{by_name['envoy'].ports['mesh']}"
    assert gateway["http_port"] == by_name["gateway-1"].ports["http"]
    assert gateway["otlp_endpoint"] == "http://127.0.0.1:4317"
    assert read_settings(by_name["tokenizer-0"])["chat_template"] == "/templates/chat.jinja"


def test_the_codec_of_blocks_in_the_store_arrives() -> None:
    text = EVERYTHING.replace("kvCache: {", "kvCache: {codec: fp8, ", 1)
    service = parse_manifest(text, "everything")
    by_name = {process.name: process for process in plan(service, observe(service)).processes}
    assert read_settings(by_name["worker-1"])["kv_codec"] == "fp8"
