"""Manifests for planner tests, and a made-up machine to plan them for."""

from __future__ import annotations

from shoal.operator.api import InferenceService, Machine
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
  kvCache: {blockSize: 32, memory: 1Gi}
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
  failover: {maxMoves: 2, streamStallSeconds: 10, firstTokenSeconds: 60, moveWaitSeconds: 5.5}
  observability: {logLevel: debug, otlpEndpoint: "http://127.0.0.1:4317", accessLog: true}
"""
# What pods cannot see is elsewhere there.
EVERYTHING_ON_KUBERNETES = (
    EVERYTHING.replace("{apiKeysFile: /keys}", "{apiKeysSecret: {name: keys}}")
    .replace("chatTemplate: /templates/", "cacheClaim: models\n    chatTemplate: /models/")
    .replace("workers: {replicas: 3", "workers: {resources: {cpu: 3, memory: 8Gi}, replicas: 3")
)


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
