"""The rules of `operation_rules.py`, as far as schemas let CEL look: what is inside a pod's spec it cannot see."""

from __future__ import annotations

from typing import Final

from shoal.operator.api.cel.base import PUBLIC_PORT
from shoal.operator.api.cel.rule import Rule, given
from shoal.operator.api.kubernetes_rules import MODELS_DIR

_SCALING: Final = "self.spec.autoscaling"
_METRIC: Final = f"{_SCALING}.metric"
_DRAFT: Final = "self.spec.speculative"
_KV: Final = "self.spec.kvCache"
_GATEWAY: Final = "self.spec.gateway"
_ROLES: Final = "(has(self.spec.prefill) || has(self.spec.decode))"


def _in_pods(uri: str) -> str:
    below = " || ".join(f"{uri}.startsWith('{prefix}{MODELS_DIR}/')" for prefix in ("", "file://"))
    return f"{uri}.startsWith('hf://') || {uri}.startsWith('pypi://') || (has(self.spec.model.cacheClaim) && ({below}))"


OPERATION_RULES: Final = (
    Rule(
        "self.spec.model.loadFormat != 'gguf' || self.spec.model.quantization == 'auto'",
        "self.spec.model.quantization + ' has no meaning for spec.model.loadFormat = gguf, whose files say it; "
        "give auto'",
        "spec.model.quantization",
    ),
    Rule(
        "!has(self.spec.adapters) || self.spec.adapters.all(adapter, adapter.name != self.spec.model.name)",
        "self.spec.model.name + ' is given twice, as an adapter or as spec.model.name; give each name once'",
        "spec.adapters",
    ),
    Rule(
        f"!has(self.spec.adapters) || self.spec.adapters.all(adapter, adapter.uri.startsWith('https://') || "
        f"adapter.uri.startsWith('http://') || {_in_pods('adapter.uri')})",
        f"'one of them is not in the pods; give hf://, pypi:// or https://, or a path below {MODELS_DIR}/ with "
        "spec.model.cacheClaim'",
        "spec.adapters",
    ),
    Rule(
        f"!has({_DRAFT}) || {_DRAFT}.method == 'ngram' || has({_DRAFT}.draftModel)",
        f"'is what method ' + {_DRAFT}.method + ' guesses with; give it, or method ngram'",
        "spec.speculative.draftModel",
    ),
    Rule(
        f"!has({_DRAFT}) || {_DRAFT}.method != 'ngram' || !has({_DRAFT}.draftModel)",
        "'has no meaning for method ngram; leave it out, or give draft_model'",
        "spec.speculative.draftModel",
    ),
    Rule(
        f"!({given('spec.speculative.draftModel')}) || {_in_pods(f'{_DRAFT}.draftModel.uri')}",
        f"{_DRAFT}.draftModel.uri + ' is not in the pods; give hf:// or pypi://, or a path below {MODELS_DIR}/ with "
        "spec.model.cacheClaim'",
        "spec.speculative.draftModel.uri",
    ),
    Rule(
        f"!has({_SCALING}) || {_SCALING}.minReplicas <= {_SCALING}.maxReplicas",
        "'is more than spec.autoscaling.maxReplicas; give at most that'",
        "spec.autoscaling.minReplicas",
    ),
    Rule(
        f"!has({_SCALING}) || {_METRIC}.name != 'tokensPerSecond' || has({_METRIC}.target)",
        "'is what one worker is to make; give a number, best one that was measured on such a GPU'",
        "spec.autoscaling.metric.target",
    ),
    Rule(
        f"!has({_SCALING}) || {_METRIC}.name != 'kv_cache' || !has({_METRIC}.target) || {_METRIC}.target <= 1.0",
        "'is more than all of the KV cache; give at most 1, such as 0.8'",
        "spec.autoscaling.metric.target",
    ),
    Rule(
        f"!has({_SCALING}) || !{_ROLES} || has(self.spec.ratio)",
        "'scales spec.workers.replicas; give spec.ratio, which divides them, or leave it out'",
        "spec.autoscaling",
    ),
    Rule(
        f"!has({_SCALING}) || !{_ROLES} || !has(self.spec.ratio) || {_SCALING}.minReplicas >= 2",
        "'cannot be divided between prefill and decode; give at least 2'",
        "spec.autoscaling.minReplicas",
    ),
    Rule(
        f"{_KV}.codec == 'none' || has({_KV}.cpu)",
        f"{_KV}.codec + ' is how a KV store keeps blocks; give spec.kvCache.cpu, or leave it out'",
        "spec.kvCache.codec",
    ),
    Rule(
        f"{_KV}.placement == 'Pod' || has({_KV}.cpu)",
        "'has no meaning without a KV store; give spec.kvCache.cpu, or leave it out'",
        "spec.kvCache.placement",
    ),
    Rule(
        f"!has({_KV}.peersSecret) || has({_KV}.cpu)",
        "'has no meaning without a KV store; give spec.kvCache.cpu, or leave it out'",
        "spec.kvCache.peersSecret",
    ),
    Rule(
        f"{_KV}.placement == 'Node' || !has({_KV}.ssdVolume) || !has({_KV}.ssdVolume.hostPath)",
        f"{_KV}.ssdVolume.hostPath + ' is for one store a node; give spec.kvCache.placement = Node, or "
        "storageClassName'",
        "spec.kvCache.ssdVolume.hostPath",
    ),
    Rule(
        f"!has({_KV}.ssdVolume) || has({_KV}.ssd)",
        "'has no meaning without spec.kvCache.ssd'",
        "spec.kvCache.ssdVolume",
    ),
    Rule(
        f"!has({_KV}.ssdVolume) || [has({_KV}.ssdVolume.hostPath), has({_KV}.ssdVolume.storageClassName), "
        f"has({_KV}.ssdVolume.claim)].exists_one(is_given, is_given)",
        "'give one of hostPath, storageClassName and claim'",
        "spec.kvCache.ssdVolume",
    ),
    Rule(
        f"!has({_GATEWAY}.http.port) || {_GATEWAY}.http.enabled",
        "'has no meaning for spec.gateway.http.enabled = false; leave it out'",
        "spec.gateway.http.port",
    ),
    *(
        Rule(
            f"!has({_GATEWAY}.{name}.port) || ({_GATEWAY}.{name}.port != {PUBLIC_PORT} && "
            f"(!has({_GATEWAY}.endpointPicker) || {_GATEWAY}.{name}.port != {_GATEWAY}.endpointPicker.port){rest})",
            "'is that of another port of the Service; give another, or leave it out'",
            f"spec.gateway.{name}.port",
        )
        for name, rest in (
            ("grpc", ""),
            ("http", f" && (!has({_GATEWAY}.grpc.port) || {_GATEWAY}.http.port != {_GATEWAY}.grpc.port)"),
        )
    ),
    Rule(
        "!has(self.spec.podTemplate) || !has(self.spec.podTemplate.kvStore) || has(self.spec.kvCache.cpu)",
        "'has no meaning without a KV store; give spec.kvCache.cpu, or leave it out'",
        "spec.podTemplate.kvStore",
    ),
    Rule(
        f"!has(self.spec.podTemplate) || !has(self.spec.podTemplate.kvStore) || !has({_KV}.cpu) || "
        f"{_KV}.placement == 'Node'",
        "'has no meaning for spec.kvCache.placement = Pod, where the store is init container kv-store of worker pods; "
        "give podTemplate.worker, or placement Node'",
        "spec.podTemplate.kvStore",
    ),
    Rule(
        "!has(self.spec.podTemplate) || !has(self.spec.podTemplate.loraRegistry) || "
        "(has(self.spec.adapters) && self.spec.adapters.size() > 0)",
        "'has no meaning without adapters; give spec.adapters, or leave it out'",
        "spec.podTemplate.loraRegistry",
    ),
)
