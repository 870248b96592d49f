"""The rules of `rules.py` and `kubernetes_rules.py`."""

from __future__ import annotations

from typing import Final

from shoal.operator.api.cel.rule import Rule
from shoal.operator.api.kubernetes_rules import DEFAULT_PORT, MAX_NAME_LENGTH, MODELS_DIR, POD_PORTS
from shoal.operator.api.rules import MIN_GPU_BLOCK_SIZE

_WORKERS: Final = "self.spec.workers"
_SIMULATED: Final = f"{_WORKERS}.simulated"
_KV: Final = "self.spec.kvCache"
_FLOW: Final = "self.spec.flowControl"
_MODEL: Final = "self.spec.model"
_PICKER: Final = "self.spec.gateway.endpointPicker"
PUBLIC_PORT: Final = f"(self.spec.gateway.port == 0 ? {DEFAULT_PORT} : self.spec.gateway.port)"
_AUTH: Final = "self.spec.gateway.auth"
# As `defaults.py` has them: on a GPU, real or simulated, more.
_ON_GPU: Final = f"({_WORKERS}.device == 'cuda' || (has({_SIMULATED}) && has({_SIMULATED}.model)))"
_MAX_TOKENS: Final = (
    f"(has({_WORKERS}.maxNumBatchedTokens) ? {_WORKERS}.maxNumBatchedTokens : ({_ON_GPU} ? 8192 : 512))"
)


def _within(path: str, limit: str) -> str:
    return f"!has({path}) || {path} <= {limit}"


BASE_RULES: Final = (
    Rule(
        f"self.metadata.name.size() <= {MAX_NAME_LENGTH} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        f"'metadata.name: ' + self.metadata.name + ' names Services and pods; give at most {MAX_NAME_LENGTH} of a-z, "
        "0-9 and -, starting with a letter'",
    ),
    Rule(
        f"{_WORKERS}.device == 'cuda' || !has({_WORKERS}.gpuMemoryUtilization)",
        f"'has no meaning for spec.workers.device = ' + {_WORKERS}.device + '; leave it out, and give "
        "spec.kvCache.memory'",
        "spec.workers.gpuMemoryUtilization",
    ),
    Rule(
        f"{_WORKERS}.device != 'cuda' || !has(self.spec.kvCache.memory)",
        "'has no meaning for spec.workers.device = cuda, where KV blocks get what weights and steps leave of "
        "spec.workers.gpuMemoryUtilization; leave it out'",
        "spec.kvCache.memory",
    ),
    Rule(
        f"{_WORKERS}.device != 'cuda' || !has(self.spec.kvCache.blockSize) || self.spec.kvCache.blockSize >= "
        f"{MIN_GPU_BLOCK_SIZE}",
        f"'is too small for a GPU; give {MIN_GPU_BLOCK_SIZE} or more (64 is the default)'",
        "spec.kvCache.blockSize",
    ),
    Rule(
        f"!has({_KV}.ssd) || has({_KV}.cpu)",
        "'needs memory in front of it; give spec.kvCache.cpu'",
        "spec.kvCache.ssd",
    ),
    Rule(
        f"!has({_KV}.ssd) || has({_KV}.ssdVolume)",
        "'needs a place; give spec.kvCache.ssdVolume'",
        "spec.kvCache.ssd",
    ),
    Rule(
        f"!has({_KV}.ssdFolder)",
        "'is not in the pods; give spec.kvCache.ssdVolume'",
        "spec.kvCache.ssdFolder",
    ),
    Rule(
        f"!has({_KV}.cpu) || {_WORKERS}.device != 'simulated'",
        "'has no meaning for spec.workers.device = simulated, which has no KV to store; leave it out'",
        "spec.kvCache.cpu",
    ),
    Rule(
        f"{_WORKERS}.device == 'simulated' || !has({_SIMULATED})",
        f"'has no meaning for spec.workers.device = ' + {_WORKERS}.device + '; leave it out, or give simulated'",
        "spec.workers.simulated",
    ),
    *(
        Rule(
            f"!has({_SIMULATED}) || !has({_SIMULATED}.model) || {_SIMULATED}.{name} == 0.0",
            f"'has no meaning beside spec.workers.simulated.model = ' + {_SIMULATED}.model + ', whose times were "
            "measured; use timeScale'",
            f"spec.workers.simulated.{name}",
        )
        for name in ("stepMilliseconds", "tokenMicroseconds")
    ),
    Rule(
        f"!has({_WORKERS}.maxNumSeqs) || {_WORKERS}.maxNumSeqs <= {_MAX_TOKENS}",
        "'is more than spec.workers.maxNumBatchedTokens (512, on a GPU 8192, by default), but every running sequence "
        "needs one token a step; give at most that'",
        "spec.workers.maxNumSeqs",
    ),
    Rule(
        f"!has({_MODEL}.revision) || {_MODEL}.uri.startsWith('hf://')",
        f"{_MODEL}.revision + ' has no meaning for ' + {_MODEL}.uri + '; only hf:// models have revisions'",
        "spec.model.revision",
    ),
    Rule(
        f"{_MODEL}.uri.startsWith('hf://') || {_MODEL}.uri.startsWith('pypi://') || (has({_MODEL}.cacheClaim) && "
        f"({_MODEL}.uri.startsWith('{MODELS_DIR}/') || {_MODEL}.uri.startsWith('file://{MODELS_DIR}/')))",
        f"{_MODEL}.uri + ' is not in the pods; give hf:// or pypi://, or a path below {MODELS_DIR}/ with "
        "spec.model.cacheClaim'",
        "spec.model.uri",
    ),
    Rule(
        f"!has({_MODEL}.chatTemplate) || (has({_MODEL}.cacheClaim) && "
        f"{_MODEL}.chatTemplate.startsWith('{MODELS_DIR}/'))",
        f"{_MODEL}.chatTemplate + ' is not in the pods; give a path below {MODELS_DIR}/ with spec.model.cacheClaim'",
        "spec.model.chatTemplate",
    ),
    Rule(
        f"!has({_AUTH}) || (has({_AUTH}.apiKeysSecret) && !has({_AUTH}.apiKeysFile))",
        "'give apiKeysSecret, and no apiKeysFile: pods do not see the files of your machine'",
        "spec.gateway.auth",
    ),
    Rule(
        f"!has({_PICKER}) || self.spec.gateway.replicas == 1",
        "'several gateways cannot share a port; give spec.gateway.replicas = 1, or leave it out'",
        "spec.gateway.endpointPicker",
    ),
    Rule(
        f"!has({_PICKER}) || !({_PICKER}.port in {list(POD_PORTS)} || {_PICKER}.port == {PUBLIC_PORT})",
        f"'is taken, by pods ({', '.join(map(str, POD_PORTS))}) or by spec.gateway.port; give another, such as 9002'",
        "spec.gateway.endpointPicker.port",
    ),
    *(
        Rule(
            _within(f"{_FLOW}.{field}PerTenant", f"{_FLOW}.{field}"),
            f"'is more than spec.flowControl.{field} for all tenants; give at most that'",
            f"spec.flowControl.{field}PerTenant",
        )
        for field in ("maxQueuedRequests", "maxQueuedTokens")
    ),
    *(
        Rule(
            f"!has({_FLOW}.tenants) || {_FLOW}.tenants.all(tenant, "
            f"!has(tenant.{field}) || tenant.{field} <= {_FLOW}.{field})",
            f"'a tenant has more {field} than spec.flowControl.{field} for all; give at most that'",
            "spec.flowControl.tenants",
        )
        for field in ("maxQueuedRequests", "maxQueuedTokens")
    ),
    Rule(
        f"!has({_FLOW}.tenants) || {_FLOW}.tenants.size() == 0 || has({_AUTH})",
        "'tenants are told apart by their API keys; give spec.gateway.auth, or leave tenants out'",
        "spec.flowControl.tenants",
    ),
)
