"""Manifests for planner tests, and a made-up machine to plan them for."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st
from msgspec import inspect

from shoal.operator.api import InferenceService, Machine
from shoal.operator.api.spec import InferenceServiceSpec
from shoal.operator.planner import Observed, required_ports

EVERYTHING = """
apiVersion: shoal.dev/v1alpha1
kind: InferenceService
metadata: {name: everything, namespace: models, labels: {team: a}}
spec:
  model:
    name: org/model
    uri: hf://org/model
    revision: v1
    dtype: float32
    maxModelLen: 4096
    loadFormat: safetensors
    chatTemplate: /templates/chat.jinja
  workers: {replicas: 3, threads: 2, maxNumSeqs: 8, maxNumBatchedTokens: 256, maxQueuedRequests: 10}
  kvCache: {blockSize: 32, memory: 1Gi, cpu: 2Gi, ssd: 10Gi, ssdFolder: /disk/kv}
  gateway: {replicas: 2, port: 8080, auth: {apiKeysFile: /keys}}
  tokenizer: {replicas: 2}
  routing: {policy: least_load}
  flowControl:
    enabled: false
    maxQueuedRequests: 1000
    maxQueuedTokens: 20000000
    maxQueueSeconds: 30
    maxQueuedRequestsPerTenant: 500
    maxQueuedTokensPerTenant: 10000000
    priorityStepSeconds: 2.5
    workerQueueRatio: 0.5
    tenants:
    - {name: gold, weight: 4, maxQueuedRequests: 800, maxQueuedTokens: 15000000}
    - {name: batch, weight: 0.5}
  failover: {maxMoves: 2, streamStallSeconds: 10, firstTokenSeconds: 60, moveWaitSeconds: 5.5, rebalance: false}
  observability: {logLevel: debug, otlpEndpoint: "http://127.0.0.1:4317", accessLog: true}
"""
MINIMAL_ON_KUBERNETES = """
apiVersion: shoal.dev/v1alpha1
kind: InferenceService
metadata: {name: smol}
spec:
  model: {name: smol, uri: hf://org/model}
"""
# Fields that differ from the minimal manifest, the field that is at fault, and words of the API server's answer: the
# numbers, and what to do.
BAD_MANIFESTS: list[tuple[dict[str, Any], str, str]] = [
    ({"metadata.name": "9lives"}, "metadata.name", "starting with a letter"),
    ({"metadata.name": "a" * 41}, "metadata.name", "at most 40"),
    ({"spec.model.name": "-x"}, "spec.model.name", "should match"),
    ({"spec.model.name": "x" * 129}, "spec.model.name", "128"),
    ({"spec.model.uri": None}, "spec.model.uri", "Required value"),
    ({"spec.model.uri": "ftp://x"}, "spec.model.uri", "should match"),
    ({"spec.model.uri": "/here/m.gguf"}, "spec.model.uri", "/here/m.gguf is not in the pods"),
    ({"spec.model.uri": "file:///models/m.gguf"}, "spec.model.uri", "with spec.model.cacheClaim"),
    ({"spec.model.uri": "pypi://a==1/b", "spec.model.revision": "v1"}, "spec.model.revision", "only hf:// models"),
    ({"spec.model.sha256": "abc"}, "spec.model.sha256", "should match"),
    ({"spec.model.dtype": "fp8"}, "spec.model.dtype", '"auto", "bfloat16", "float32"'),
    ({"spec.model.maxModelLen": 0}, "spec.model.maxModelLen", "greater than or equal to 1"),
    ({"spec.model.chatTemplate": "/t.jinja"}, "spec.model.chatTemplate", "a path below /models/"),
    ({"spec.model.max_model_len": 5}, "spec.model.max_model_len", "unknown field"),
    ({"spec.worker": {}}, "spec.worker", "unknown field"),
    ({"spec.workers.replicas": 0}, "spec.workers.replicas", "greater than or equal to 1"),
    ({"spec.workers.replicas": 65}, "spec.workers.replicas", "less than or equal to 64"),
    ({"spec.workers.replicas": "2"}, "spec.workers.replicas", "must be of type integer"),
    ({"spec.workers.device": "tpu"}, "spec.workers.device", '"cpu", "cuda", "simulated"'),
    ({"spec.workers.gpuMemoryUtilization": 0.9}, "spec.workers.gpuMemoryUtilization", "device = cpu"),
    (
        {"spec.workers": {"device": "cuda", "gpuMemoryUtilization": 0}},
        "spec.workers.gpuMemoryUtilization",
        "greater than 0",
    ),
    (
        {"spec.workers.maxNumSeqs": 600},
        "spec.workers.maxNumSeqs",
        "is more than spec.workers.maxNumBatchedTokens (512",
    ),
    (
        {"spec.workers": {"maxNumSeqs": 9, "maxNumBatchedTokens": 8}},
        "spec.workers.maxNumSeqs",
        "give at most that",
    ),
    ({"spec.workers.simulated": {}}, "spec.workers.simulated", "leave it out, or give simulated"),
    (
        {"spec.workers": {"device": "simulated", "simulated": {"model": "llama-3.1-8b-h100", "stepMilliseconds": 5}}},
        "spec.workers.simulated.stepMilliseconds",
        "whose times were measured",
    ),
    ({"spec.workers.resources": {"cpu": "two"}}, "spec.workers.resources.cpu", "should match"),
    ({"spec.workers.resources": {"memory": "8GB"}}, "spec.workers.resources.memory", "should match"),
    ({"spec.kvCache.blockSize": 24}, "spec.kvCache.blockSize", '"8", "16", "32", "64", "128"'),
    (
        {"spec.workers": {"device": "cuda"}, "spec.kvCache.blockSize": 8},
        "spec.kvCache.blockSize",
        "is too small for a GPU; give 16 or more",
    ),
    ({"spec.kvCache.memory": "1 GB"}, "spec.kvCache.memory", "should match"),
    ({"spec.kvCache.memory": 0}, "spec.kvCache.memory", "greater than or equal to 1"),
    ({"spec.workers": {"device": "cuda"}, "spec.kvCache.memory": "1Gi"}, "spec.kvCache.memory", "leave it out"),
    ({"spec.gateway.port": 70000}, "spec.gateway.port", "less than or equal to 65535"),
    ({"spec.gateway.auth": {}}, "spec.gateway.auth", "give apiKeysSecret"),
    ({"spec.gateway.auth": {"apiKeysFile": "/keys"}}, "spec.gateway.auth", "the files of your machine"),
    (
        {"spec.gateway": {"replicas": 2, "endpointPicker": {}}},
        "spec.gateway.endpointPicker",
        "several gateways cannot share a port",
    ),
    (
        {"spec.gateway.endpointPicker": {"port": 8080}},
        "spec.gateway.endpointPicker.port",
        "is taken, by pods (8000, 8080",
    ),
    ({"spec.routing.policy": "best"}, "spec.routing.policy", '"round_robin"'),
    (
        {"spec.flowControl": {"maxQueuedRequests": 10, "maxQueuedRequestsPerTenant": 11}},
        "spec.flowControl.maxQueuedRequestsPerTenant",
        "is more than spec.flowControl.maxQueuedRequests for all",
    ),
    ({"spec.flowControl.tenants": [{"name": "a"}]}, "spec.flowControl.tenants", "told apart by their API keys"),
    (
        {
            "spec.flowControl": {"maxQueuedTokens": 10, "tenants": [{"name": "a", "maxQueuedTokens": 11}]},
            "spec.gateway.auth": {"apiKeysSecret": {"name": "k"}},
        },
        "spec.flowControl.tenants[0].maxQueuedTokens",
        "spec.flowControl.maxQueuedTokens for all",
    ),
    (
        {
            "spec.flowControl": {"tenants": [{"name": "a"}, {"name": "a"}]},
            "spec.gateway.auth": {"apiKeysSecret": {"name": "k"}},
        },
        "spec.flowControl.tenants[1].name",
        "Duplicate value",
    ),
    ({"spec.observability.otlpEndpoint": "x:4317"}, "spec.observability.otlpEndpoint", "should match"),
    ({"spec.failover.maxMoves": -1}, "spec.failover.maxMoves", "greater than or equal to 0"),
]
# What pods cannot see is elsewhere there.
EVERYTHING_ON_KUBERNETES = (
    EVERYTHING.replace("{apiKeysFile: /keys}", "{apiKeysSecret: {name: keys}}")
    .replace("chatTemplate: /templates/", "cacheClaim: models\n    chatTemplate: /models/")
    .replace(", cpu: 2Gi, ssd: 10Gi, ssdFolder: /disk/kv", "")
    .replace("workers: {replicas: 3", "workers: {resources: {cpu: 3, memory: 8Gi}, replicas: 3")
)


def specs() -> st.SearchStrategy[InferenceServiceSpec]:
    """Any spec that its types allow, contradictions and all."""
    return _values(inspect.type_info(InferenceServiceSpec))


def _values(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.Metadata():
            return _values(info.type)
        case inspect.StructType():
            required = {field.name: _values(field.type) for field in info.fields if field.required}
            optional = {field.name: _values(field.type) for field in info.fields if not field.required}
            fields = st.fixed_dictionaries(required, optional=optional)
            return fields.map(lambda values: info.cls(**values))
        case inspect.UnionType():
            return st.one_of([_values(option) for option in info.types])
        case inspect.LiteralType():
            return st.sampled_from(info.values)
        case inspect.IntType():
            return st.integers(info.ge, info.le if info.le is not None else 1 << 62)
        case inspect.FloatType():
            low = info.gt if info.gt is not None else info.ge
            excluded = info.gt is not None
            return st.floats(low, info.le, exclude_min=excluded, allow_nan=False, allow_infinity=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.StrType(pattern=pattern, max_length=limit, min_length=least):
            if pattern is None:
                return st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=least or 0, max_size=20)
            texts = st.from_regex(pattern, alphabet=st.characters(codec="ascii", exclude_categories=["C"]))
            return texts.filter(lambda text: len(text) <= (limit or 100) and "\n" not in text)
        case inspect.DictType(value_type=inspect.AnyType()):  # of pods
            return st.sampled_from([{}, {"priorityClassName": "high"}, {"nodeSelector": {"disk": "ssd"}}])
        case inspect.DictType():
            return st.dictionaries(st.sampled_from(["team", "example.com/a-b"]), st.just("x"), max_size=2)
        case inspect.VarTupleType():
            return st.lists(_values(info.item_type), max_size=2).map(tuple)
        case _:
            raise TypeError(f"no values for {info}")


def with_fields(text: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The manifest with fields set, by path; None takes one away."""
    manifest: dict[str, Any] = yaml.safe_load(text)
    for path, value in fields.items():
        *sections, name = path.split(".")
        section = manifest
        for key in sections:
            section = section.setdefault(key, {})
        if value is None:
            del section[name]
        else:
            section[name] = value
    return manifest


def observe(service: InferenceService, num_cores: int = 4) -> Observed:
    ports = {name: 20_000 + index for index, name in enumerate(required_ports(service))}
    return Observed(
        machine=Machine(num_cores=num_cores, memory_bytes=16 << 30, gpus=("0", "GPU-1")),
        run_dir="/run/shoal-1",
        log_dir="/run/shoal-1/logs",
        model_path="/cache/model",
        python="/usr/bin/python3",
        envoy="/usr/bin/envoy",
        ports=ports,
        vocab_size=49_152,
    )
