"""What a manifest must also keep to on Kubernetes, where pods see no files of the author's machine."""

from __future__ import annotations

import re
from typing import Final

from shoal.operator.api.defaults import worker_sizes
from shoal.operator.api.problems import Problem
from shoal.operator.api.quantity import format_bytes, parse_quantity
from shoal.operator.api.roles import worker_roles
from shoal.operator.api.spec import InferenceService, InferenceServiceSpec

MAX_NAME_LENGTH: Final = 40
"""Objects are named after the service; a StatefulSet puts another ten characters after its own name into a label."""
MODELS_DIR: Final = "/models"
"""Where pods have the model cache."""
POD_PORTS: Final = (8000, 8080, 8081, 8082, 9090, 9901, 50051, 50052)
"""What gateways and their Envoys listen on."""
DEFAULT_PORT: Final = 8080
"""Of the public Service."""
_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def find_kubernetes_contradictions(service: InferenceService) -> list[Problem]:
    """Every problem that `find_contradictions` does not list, since one machine does not have it."""
    return (
        _check_name(service)
        + _check_files(service)
        + _check_ports(service)
        + _check_kv_store(service)
        + _check_memory(service.spec)
    )


def _check_kv_store(service: InferenceService) -> list[Problem]:
    if service.spec.kv_cache.ssd_folder is None:
        return []
    message = f"{service.spec.kv_cache.ssd_folder!r} is not in the pods; give spec.kvCache.ssdVolume"
    return [Problem("spec.kvCache.ssdFolder", message)]


def _check_memory(spec: InferenceServiceSpec) -> list[Problem]:
    """A pod that uses more than its limit is killed."""
    kv_cache_bytes = worker_sizes(spec).kv_cache_memory_bytes or 0
    problems = []
    for role in worker_roles(spec):
        limit = role.resources.memory
        if limit is not None and parse_quantity(limit) <= kv_cache_bytes:
            message = (
                f"{limit} is also the most that a pod may use, and KV blocks alone are {format_bytes(kv_cache_bytes)}, "
                "beside which weights need room too; give more, or a smaller spec.kvCache.memory"
            )
            problems.append(Problem(f"{role.path}.resources.memory", message))
    return problems


def _check_ports(service: InferenceService) -> list[Problem]:
    """Of the public Service, and of the pods behind it."""
    gateway, problems = service.spec.gateway, []
    public = gateway.port or DEFAULT_PORT
    picker = gateway.endpoint_picker
    if picker is not None and (picker.port in POD_PORTS or picker.port == public):
        taken = ", ".join(map(str, POD_PORTS))
        message = f"{picker.port} is taken, by pods ({taken}) or by spec.gateway.port = {public}; give another, such as"
        problems.append(Problem("spec.gateway.endpointPicker.port", f"{message} 9002"))
    taken_by = {public: "spec.gateway.port"} | ({} if picker is None else {picker.port: "spec.gateway.endpointPicker"})
    for name, port in (("grpc", gateway.grpc.port), ("http", gateway.http.port)):
        if port is not None and port in taken_by:
            message = f"{port} is that of {taken_by[port]}; give another, or leave it out"
            problems.append(Problem(f"spec.gateway.{name}.port", message))
        elif port is not None:
            taken_by[port] = f"spec.gateway.{name}.port"
    return problems


def _check_name(service: InferenceService) -> list[Problem]:
    name = service.metadata.name
    if len(name) <= MAX_NAME_LENGTH and _NAME.fullmatch(name):
        return []
    message = (
        f"{name!r} names Services and pods; give at most {MAX_NAME_LENGTH} of a-z, 0-9 and -, starting with a letter"
    )
    return [Problem("metadata.name", message)]


def _check_files(service: InferenceService) -> list[Problem]:
    spec, auth = service.spec, service.spec.gateway.auth
    problems = []
    has_claim = spec.model.cache_claim is not None
    sources = {"spec.model.uri": spec.model.uri}
    sources |= {f"spec.adapters[{index}].uri": adapter.uri for index, adapter in enumerate(spec.adapters)}
    if spec.speculative is not None and spec.speculative.draft_model is not None:
        sources["spec.speculative.draftModel.uri"] = spec.speculative.draft_model.uri
    for path, uri in sources.items():
        schemes = ("hf://", "pypi://", *(("https://", "http://") if ".adapters[" in path else ()))
        remote = uri.startswith(schemes)
        if not remote and not (has_claim and uri.startswith((f"{MODELS_DIR}/", f"file://{MODELS_DIR}/"))):
            message = (
                f"{uri!r} is not in the pods; give {' or '.join(schemes[:3])}, or a path below {MODELS_DIR}/ with "
                "spec.model.cacheClaim"
            )
            problems.append(Problem(path, message))
    template = spec.model.chat_template
    if template is not None and not (has_claim and template.startswith(f"{MODELS_DIR}/")):
        message = f"{template!r} is not in the pods; give a path below {MODELS_DIR}/ with spec.model.cacheClaim"
        problems.append(Problem("spec.model.chatTemplate", message))
    if auth is not None and (auth.api_keys_secret is None or auth.api_keys_file is not None):
        message = "give apiKeysSecret, and no apiKeysFile: pods do not see the files of your machine"
        problems.append(Problem("spec.gateway.auth", message))
    return problems
