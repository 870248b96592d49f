"""Rules over what surrounds the workers: adapters, guesses, scaling, volumes and pods."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from shoal.operator.api.pod_rules import find_pod_contradictions, given_templates
from shoal.operator.api.problems import Problem
from shoal.operator.api.spec import InferenceServiceSpec

METADATA_KEY: Final = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
"""Of labels and annotations."""
LABEL_VALUE: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
RESERVED_PREFIXES: Final = ("shoal.dev/", "app.kubernetes.io/")
"""Of labels that the operator finds its pods by."""


def find_operation_contradictions(spec: InferenceServiceSpec) -> list[Problem]:
    """Everything that needs no model and no machine."""
    return (
        _check_quantization(spec)
        + _check_adapters(spec)
        + _check_speculative(spec)
        + _check_autoscaling(spec)
        + _check_ssd_volume(spec)
        + _check_gateway(spec)
        + _check_pull_secrets(spec)
        + _check_pods(spec)
    )


def _check_quantization(spec: InferenceServiceSpec) -> list[Problem]:
    model = spec.model
    if model.load_format != "gguf" or model.quantization == "auto":
        return []
    message = f"{model.quantization} has no meaning for spec.model.loadFormat = gguf, whose files say it; give auto"
    return [Problem("spec.model.quantization", message)]


def _check_adapters(spec: InferenceServiceSpec) -> list[Problem]:
    problems, seen = [], {spec.model.name}
    for index, adapter in enumerate(spec.adapters):
        if adapter.name in seen:
            message = f"{adapter.name!r} is given twice, as an adapter or as spec.model.name; give each name once"
            problems.append(Problem(f"spec.adapters[{index}].name", message))
        seen.add(adapter.name)
    return problems


def _check_speculative(spec: InferenceServiceSpec) -> list[Problem]:
    speculative, path = spec.speculative, "spec.speculative.draftModel"
    if speculative is None or (speculative.method == "ngram") == (speculative.draft_model is None):
        return []
    if speculative.draft_model is None:
        return [Problem(path, f"is what method {speculative.method} guesses with; give it, or method ngram")]
    return [Problem(path, "has no meaning for method ngram; leave it out, or give draft_model")]


def _check_autoscaling(spec: InferenceServiceSpec) -> list[Problem]:
    scaling, path = spec.autoscaling, "spec.autoscaling"
    if scaling is None:
        return []
    problems = []
    low, high, metric = scaling.min_replicas, scaling.max_replicas, scaling.metric
    if low > high:
        message = f"{low} is more than {path}.maxReplicas = {high}; give at most that"
        problems.append(Problem(f"{path}.minReplicas", message))
    if metric.name == "tokensPerSecond" and metric.target is None:
        message = "is what one worker is to make; give a number, best one that was measured on such a GPU"
        problems.append(Problem(f"{path}.metric.target", message))
    if metric.name == "kv_cache" and metric.target is not None and metric.target > 1:
        message = f"{metric.target:g} is more than all of the KV cache; give at most 1, such as 0.8"
        problems.append(Problem(f"{path}.metric.target", message))
    if spec.prefill is not None or spec.decode is not None:
        if spec.ratio is None:
            message = "scales spec.workers.replicas; give spec.ratio, which divides them, or leave it out"
            problems.append(Problem(path, message))
        elif low < 2:
            message = f"{low} cannot be divided between prefill and decode; give at least 2"
            problems.append(Problem(f"{path}.minReplicas", message))
    return problems


def _check_ssd_volume(spec: InferenceServiceSpec) -> list[Problem]:
    kv_cache, path = spec.kv_cache, "spec.kvCache"
    volume, problems = kv_cache.ssd_volume, []
    if kv_cache.codec != "none" and kv_cache.cpu is None:
        message = f"{kv_cache.codec} is how a KV store keeps blocks; give {path}.cpu, or leave it out"
        problems.append(Problem(f"{path}.codec", message))
    if kv_cache.cpu is None:
        message = f"has no meaning without a KV store; give {path}.cpu, or leave it out"
        given_alone = {"placement": kv_cache.placement != "Pod", "peersSecret": kv_cache.peers_secret is not None}
        problems += [Problem(f"{path}.{name}", message) for name, is_given in given_alone.items() if is_given]
    if volume is None:
        return problems
    if volume.host_path is not None and kv_cache.placement == "Pod":
        message = f"{volume.host_path!r} is for one store a node; give {path}.placement = Node, or storageClassName"
        problems.append(Problem(f"{path}.ssdVolume.hostPath", message))
    if kv_cache.ssd is None:
        problems.append(Problem(f"{path}.ssdVolume", f"has no meaning without {path}.ssd"))
    given = [name for name in ("host_path", "storage_class_name", "claim") if getattr(volume, name) is not None]
    if len(given) != 1:
        message = f"has {len(given)} of hostPath, storageClassName and claim; give one"
        problems.append(Problem(f"{path}.ssdVolume", message))
    return problems


def _check_gateway(spec: InferenceServiceSpec) -> list[Problem]:
    gateway, problems = spec.gateway, []
    if gateway.http.port is not None and not gateway.http.enabled:
        message = f"{gateway.http.port} has no meaning for spec.gateway.http.enabled = false; leave it out"
        problems.append(Problem("spec.gateway.http.port", message))
    return problems + _check_keys("spec.gateway.service.annotations", gateway.service.annotations)


def _check_pull_secrets(spec: InferenceServiceSpec) -> list[Problem]:
    names = [secret.name for secret in spec.image_pull_secrets]
    return [
        Problem(f"spec.imagePullSecrets[{index}].name", f"{name!r} is given twice; give each Secret once")
        for index, name in enumerate(names)
        if name in names[:index]
    ]


def _check_pods(spec: InferenceServiceSpec) -> list[Problem]:
    templates, problems = spec.pod_template, []
    if templates is None:
        return []
    for path, overrides in given_templates(spec):
        problems += _check_keys(f"{path}.metadata.annotations", overrides.metadata.annotations)
        problems += _check_labels(f"{path}.metadata.labels", overrides.metadata.labels)
    problems += find_pod_contradictions(spec)
    if templates.kv_store is not None and spec.kv_cache.cpu is None:
        message = "has no meaning without a KV store; give spec.kvCache.cpu, or leave it out"
        problems.append(Problem("spec.podTemplate.kvStore", message))
    elif templates.kv_store is not None and spec.kv_cache.placement == "Pod":
        message = (
            "has no meaning for spec.kvCache.placement = Pod, where the store is init container kv-store of worker "
            "pods; give podTemplate.worker, or placement Node"
        )
        problems.append(Problem("spec.podTemplate.kvStore", message))
    if templates.lora_registry is not None and not spec.adapters:
        message = "has no meaning without adapters; give spec.adapters, or leave it out"
        problems.append(Problem("spec.podTemplate.loraRegistry", message))
    return problems


def _check_keys(path: str, values: Mapping[str, str]) -> list[Problem]:
    wrong = [key for key in values if not re.search(METADATA_KEY, key)]
    message = "is no key; give at most 63 of A-Z, a-z, 0-9 and . _ -, after a domain and / if it has one"
    return [Problem(path, f"{key[:80]!r} {message}") for key in wrong]


def _check_labels(path: str, labels: Mapping[str, str]) -> list[Problem]:
    problems = _check_keys(path, labels)
    for key, value in labels.items():
        if key.startswith(RESERVED_PREFIXES):
            message = f"{key!r} is how the operator finds its pods; give a key of another domain"
            problems.append(Problem(path, message))
        if not re.search(LABEL_VALUE, value):
            message = f"{value[:80]!r} is no value of a label; give at most 63 of A-Z, a-z, 0-9 and . _ -"
            problems.append(Problem(path, message))
    return problems
