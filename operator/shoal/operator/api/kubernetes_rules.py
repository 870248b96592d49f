"""What a manifest must also keep to on Kubernetes, where pods see no files of the author's machine."""

from __future__ import annotations

import re
from typing import Final

from shoal.operator.api.problems import Problem
from shoal.operator.api.spec import InferenceService

MAX_NAME_LENGTH: Final = 40
"""Objects are named after the service; a StatefulSet puts another ten characters after its own name into a label."""
MODELS_DIR: Final = "/models"
"""Where pods have the model cache."""
POD_PORTS: Final = (8000, 8080, 9090, 9901, 50051, 50052)
"""What gateways and their Envoys listen on."""
_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def find_kubernetes_contradictions(service: InferenceService) -> list[Problem]:
    """Every problem that `find_contradictions` does not list, since one machine does not have it."""
    return _check_name(service) + _check_files(service) + _check_ports(service) + _check_kv_store(service)


def _check_kv_store(service: InferenceService) -> list[Problem]:
    if service.spec.kv_cache.cpu is None:
        return []
    return [Problem("spec.kvCache.cpu", "nodes have no KV store on Kubernetes; leave it out")]


def _check_ports(service: InferenceService) -> list[Problem]:
    picker, public = service.spec.gateway.endpoint_picker, service.spec.gateway.port
    if picker is None or (picker.port not in POD_PORTS and picker.port != public):
        return []
    taken = ", ".join(map(str, POD_PORTS))
    message = (
        f"{picker.port} is taken, by pods ({taken}) or by spec.gateway.port = {public}; give another, such as 9002"
    )
    return [Problem("spec.gateway.endpointPicker.port", message)]


def _check_name(service: InferenceService) -> list[Problem]:
    name = service.metadata.name
    if len(name) <= MAX_NAME_LENGTH and _NAME.fullmatch(name):
        return []
    message = (
        f"{name!r} names Services and pods; give at most {MAX_NAME_LENGTH} of a-z, 0-9 and -, starting with a letter"
    )
    return [Problem("metadata.name", message)]


def _check_files(service: InferenceService) -> list[Problem]:
    model, auth = service.spec.model, service.spec.gateway.auth
    problems = []
    has_claim = model.cache_claim is not None
    remote = model.uri.startswith(("hf://", "pypi://"))
    if not remote and not (has_claim and model.uri.startswith((f"{MODELS_DIR}/", f"file://{MODELS_DIR}/"))):
        message = (
            f"{model.uri!r} is not in the pods; give hf:// or pypi://, or a path below {MODELS_DIR}/ with "
            "spec.model.cacheClaim"
        )
        problems.append(Problem("spec.model.uri", message))
    template = model.chat_template
    if template is not None and not (has_claim and template.startswith(f"{MODELS_DIR}/")):
        message = f"{template!r} is not in the pods; give a path below {MODELS_DIR}/ with spec.model.cacheClaim"
        problems.append(Problem("spec.model.chatTemplate", message))
    if auth is not None and (auth.api_keys_secret is None or auth.api_keys_file is not None):
        message = "give apiKeysSecret, and no apiKeysFile: pods do not see the files of your machine"
        problems.append(Problem("spec.gateway.auth", message))
    return problems
