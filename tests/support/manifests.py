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
# Every field that a section beside the workers' has, with two roles.
ROLES_ON_KUBERNETES = """
apiVersion: shoal.dev/v1alpha1
kind: InferenceService
metadata: {name: roles}
spec:
  model:
    name: org/model
    uri: hf://org/model
    quantization: fp8
    config:
      numHiddenLayers: 80
      numAttentionHeads: 64
      numKeyValueHeads: 8
      headDim: 128
      maxPositionEmbeddings: 131072
      weights: 72G
  workers: {device: cuda, replicas: 8}
  prefill:
    parallelism: {tensor: 4}
    resources: {cpu: 8, memory: 64Gi, gpuProduct: NVIDIA-H100-80GB-HBM3}
  decode:
    parallelism: {tensor: 8, pipeline: 2}
    resources: {gpus: 8, gpuMemory: 80G}
  ratio: {prefill: 1, decode: 3}
  kvCache: {cpu: 64Gi, ssd: 1Ti, placement: Node, ssdVolume: {storageClassName: fast}, codec: fp8}
  adapters:
  - {name: sql, uri: "hf://org/sql", rank: 16}
  gateway:
    grpc: {port: 9000}
    http: {port: 80}
    service: {type: LoadBalancer, annotations: {example.com/scheme: internal}}
  speculative: {method: draft_model, numSpeculativeTokens: 5, draftModel: {uri: "hf://org/small"}}
  slo: {ttftMilliseconds: 500, itlMilliseconds: 40}
  autoscaling:
    minReplicas: 4
    maxReplicas: 16
    metric: {name: tokensPerSecond, target: 2500}
    engine: keda
    scaleDownStabilizationSeconds: 600
  rollout: {strategy: Surge, maxSurge: 2, drainSeconds: 120}
  observability: {serviceMonitor: false}
  deletionPolicy: Orphan
  imagePullSecrets: [{name: registry}]
  podTemplate:
    worker:
      metadata: {labels: {team: a}, annotations: {example.com/note: "1"}}
      spec: {priorityClassName: high, containers: [{name: worker, env: [{name: A, value: b}]}]}
    gateway: {spec: {nodeSelector: {pool: edge}}}
    tokenizer: {}
    kvStore: {spec: {tolerations: [{operator: Exists}]}}
"""
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
    )
