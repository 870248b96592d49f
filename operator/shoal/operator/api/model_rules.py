"""Arithmetic of a model on its GPUs: what divides, and what fits. Refused is only what cannot work in any case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal.operator.api.defaults import worker_sizes
from shoal.operator.api.gpus import gpu_memory_bytes
from shoal.operator.api.problems import Problem
from shoal.operator.api.quantity import format_bytes, parse_quantity
from shoal.operator.api.role_rules import one_of
from shoal.operator.api.roles import WorkerRole, worker_roles
from shoal.operator.api.spec import InferenceServiceSpec, ModelConfig

_BITS: Final = {"fp8": 8.0, "awq": 4.25, "gptq": 4.25}
"""Of a quantized weight, with the scales that it shares with its neighbours."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the weights say about themselves, as far as it bears on sizes."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    max_position: int | None
    """Longest sequence the model was made for, in tokens; None when nobody says."""
    num_attention_heads: int | None = None
    num_experts: int | None = None
    """Routed experts of a layer; None where there are none."""
    num_parameters: int | None = None
    weights_bytes: int | None = None
    """All weights as they are in memory, if that is said and not to be worked out of `num_parameters`."""

    def kv_bytes_per_token(self, dtype: str) -> int:
        """K and V of all layers. `auto` counts as two bytes an element, the least a worker uses."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * _element_bytes(dtype)

    def weights_in_memory(self, dtype: str, quantization: str) -> int | None:
        """Bytes of all weights; None when not known."""
        if self.weights_bytes is not None or self.num_parameters is None:
            return self.weights_bytes
        bits = _BITS.get(quantization, 8.0 * _element_bytes(dtype))
        return int(self.num_parameters * bits / 8)


def facts_of_config(config: ModelConfig) -> ModelFacts:
    """What the manifest says."""
    return ModelFacts(
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_size=config.head_dim,
        max_position=config.max_position_embeddings,
        num_attention_heads=config.num_attention_heads,
        num_experts=config.num_experts,
        weights_bytes=None if config.weights is None else parse_quantity(config.weights),
    )


def find_model_contradictions(spec: InferenceServiceSpec, model: ModelFacts) -> list[Problem]:
    """What this model makes impossible."""
    problems = _check_length(spec, model)
    for role in worker_roles(spec):
        problems += _check_heads(role, model) + _check_layers(role, model) + _check_experts(role, model)
        problems += [] if problems else _check_gpu_memory(spec, role, model)
    return problems + _check_host_memory(spec, model)


def find_disagreements(config: ModelConfig, model: ModelFacts) -> list[Problem]:
    """Where the manifest says of the model what it does not say of itself."""
    said, problems = facts_of_config(config), []
    names = {
        "num_layers": "numHiddenLayers",
        "num_attention_heads": "numAttentionHeads",
        "num_kv_heads": "numKeyValueHeads",
        "head_size": "headDim",
        "num_experts": "numExperts",
        "max_position": "maxPositionEmbeddings",
    }
    for name, field in names.items():
        given, found = getattr(said, name), getattr(model, name)
        if given is not None and found is not None and given != found:
            problems.append(Problem(f"spec.model.config.{field}", f"{given}, but the model has {found}; give that"))
    return problems


def _check_length(spec: InferenceServiceSpec, model: ModelFacts) -> list[Problem]:
    wanted = spec.model.max_model_len
    if wanted is None or model.max_position is None or wanted <= model.max_position:
        return []
    message = f"{wanted} is more than the {model.max_position} tokens that the model was made for"
    return [Problem("spec.model.maxModelLen", message)]


def _check_heads(role: WorkerRole, model: ModelFacts) -> list[Problem]:
    tensor, heads, kv_heads = role.parallelism.tensor, model.num_attention_heads, model.num_kv_heads
    if heads is None:
        return []
    fitting = [count for count in range(1, 65) if heads % count == 0 and _kv_heads_divide(kv_heads, count)]
    if heads % tensor:
        message = f"{tensor} GPUs cannot share {heads} attention heads evenly; give {one_of(fitting)}"
    elif not _kv_heads_divide(kv_heads, tensor):
        message = f"{tensor} GPUs can neither divide nor repeat {kv_heads} KV heads evenly; give {one_of(fitting)}"
    else:
        return []
    return [Problem(f"{role.path}.parallelism.tensor", message)]


def _kv_heads_divide(kv_heads: int, tensor: int) -> bool:
    """Each GPU has some of them, or some GPUs have the same one."""
    return kv_heads % tensor == 0 or tensor % kv_heads == 0


def _check_layers(role: WorkerRole, model: ModelFacts) -> list[Problem]:
    stages, layers = role.parallelism.pipeline, model.num_layers
    if layers % stages == 0:
        return []
    fitting = [count for count in range(1, layers + 1) if layers % count == 0]
    message = f"{stages} stages cannot share {layers} layers evenly; give {one_of(fitting)}"
    return [Problem(f"{role.path}.parallelism.pipeline", message)]


def _check_experts(role: WorkerRole, model: ModelFacts) -> list[Problem]:
    sharing, experts, parallelism = role.parallelism.expert, model.num_experts, role.parallelism
    if sharing == 1:
        return []
    path = f"{role.path}.parallelism.expert"
    if experts is None:
        return [Problem(path, f"{sharing} GPUs cannot share experts of a model that has none; leave it out")]
    if experts % sharing == 0:
        return []
    together = parallelism.tensor * parallelism.data
    fitting = [count for count in range(1, together + 1) if together % count == 0 and experts % count == 0]
    return [Problem(path, f"{sharing} GPUs cannot share {experts} experts evenly; give {one_of(fitting, 512)}")]


def _check_gpu_memory(spec: InferenceServiceSpec, role: WorkerRole, model: ModelFacts) -> list[Problem]:
    """Weights, and one sequence of maxModelLen beside them, on each GPU. What steps need besides is not counted."""
    gpu_bytes, utilization = gpu_memory_bytes(role.resources), worker_sizes(spec).gpu_memory_utilization
    total_bytes = model.weights_in_memory(spec.model.dtype, spec.model.quantization)
    if gpu_bytes is None or utilization is None or total_bytes is None:
        return []
    parallelism = role.parallelism
    # How much of the weights is in experts is not known: as if all of it were, so that what could fit is not refused.
    shares = max(parallelism.tensor, parallelism.expert) * parallelism.pipeline
    weights, usable = total_bytes // shares, int(gpu_bytes * utilization)
    source = "" if role.resources.gpu_memory is not None else f", as {role.resources.gpu_product} have"
    assumed = f"{utilization:g} of a GPU's {gigabytes(gpu_bytes)}{source}"
    parts = f"weights of {gigabytes(weights)} on each GPU ({gigabytes(total_bytes)} / {shares})"
    more = f"give {role.path}.parallelism.tensor of more than {parallelism.tensor}, GPUs with more memory or smaller"
    if weights >= usable:
        message = f"{parts} do not fit {gigabytes(usable)} ({assumed}); {more} weights (spec.model.quantization)"
        return [Problem(f"{role.path}.resources", message)]
    token_bytes = kv_bytes_per_token_and_gpu(spec, role, model)
    block_size = worker_sizes(spec).block_size
    num_tokens = (usable - weights) // (token_bytes * block_size) * block_size
    wanted = spec.model.max_model_len or 2 * block_size
    if wanted <= num_tokens:
        return []
    message = (
        f"one sequence of {wanted} tokens needs {gigabytes(wanted * token_bytes)} of KV cache on each GPU "
        f"({token_bytes / 1e6:.3f} MB a token), but {parts} leave {gigabytes(usable - weights)} ({assumed}), for "
        f"{num_tokens} tokens; give at most that, or {role.path}.parallelism.tensor of more than {parallelism.tensor}"
    )
    return [Problem("spec.model.maxModelLen", message)]


def kv_bytes_per_token_and_gpu(spec: InferenceServiceSpec, role: WorkerRole, model: ModelFacts) -> int:
    """K and V of one GPU's layers and heads: heads that cannot be divided further are repeated."""
    heads = max(1, model.num_kv_heads // role.parallelism.tensor)
    layers = -(-model.num_layers // role.parallelism.pipeline)
    return 2 * layers * heads * model.head_size * _element_bytes(spec.model.dtype)


def _check_host_memory(spec: InferenceServiceSpec, model: ModelFacts) -> list[Problem]:
    """KV blocks in `kvCache.memory`, which is how they are kept where there is no GPU."""
    wanted, sizes = spec.model.max_model_len, worker_sizes(spec)
    if sizes.kv_cache_memory_bytes is None:  # the worker will find out
        return []
    block_bytes = model.kv_bytes_per_token(spec.model.dtype) * sizes.block_size
    num_blocks = sizes.kv_cache_memory_bytes // block_bytes
    num_tokens = num_blocks * sizes.block_size
    if num_blocks < 2:
        message = f"{sizes.kv_cache_memory} holds {num_blocks} blocks of {format_bytes(block_bytes)}; give at least 2"
        return [Problem("spec.kvCache.memory", message)]
    if wanted is None or wanted <= num_tokens:
        return []
    needed = format_bytes(-(-wanted // sizes.block_size) * block_bytes)
    message = (
        f"{wanted} tokens do not fit spec.kvCache.memory = {sizes.kv_cache_memory}, which holds {num_tokens}; give "
        f"at most {num_tokens}, or {needed} of memory"
    )
    return [Problem("spec.model.maxModelLen", message)]


def gigabytes(num_bytes: int) -> str:
    """`16.1 GB`, as GPUs are sold."""
    return f"{num_bytes / 1e9:.1f} GB"


def _element_bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
