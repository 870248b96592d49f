"""The rules of `model_rules.py` about what divides, for manifests that say how large the model is.

What fits is said with its numbers by the webhook alone: quantities have no arithmetic in CEL that would be short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from shoal.operator.api.cel.roles import ROLE_PATHS
from shoal.operator.api.cel.rule import Rule, given

_CONFIG: Final = "self.spec.model.config"
_KV_HEADS: Final = f"(has({_CONFIG}.numKeyValueHeads) ? {_CONFIG}.numKeyValueHeads : {_CONFIG}.numAttentionHeads)"


def _of_role(path: str) -> Iterator[Rule]:
    unknown = f"!has({_CONFIG}) || !({given(f'{path}.parallelism')})"
    parallelism = f"self.{path}.parallelism"
    yield Rule(
        f"{unknown} || {_CONFIG}.numAttentionHeads % {parallelism}.tensor == 0",
        "'so many GPUs cannot share the attention heads of spec.model.config evenly; give a divisor of "
        "numAttentionHeads'",
        f"{path}.parallelism.tensor",
    )
    yield Rule(
        f"{unknown} || {_KV_HEADS} % {parallelism}.tensor == 0 || {parallelism}.tensor % {_KV_HEADS} == 0",
        "'so many GPUs can neither divide nor repeat the KV heads of spec.model.config evenly; give a divisor or a "
        "multiple of numKeyValueHeads'",
        f"{path}.parallelism.tensor",
    )
    yield Rule(
        f"{unknown} || {_CONFIG}.numHiddenLayers % {parallelism}.pipeline == 0",
        "'so many stages cannot share the layers of spec.model.config evenly; give a divisor of numHiddenLayers'",
        f"{path}.parallelism.pipeline",
    )
    yield Rule(
        f"{unknown} || {parallelism}.expert == 1 || (has({_CONFIG}.numExperts) && "
        f"{_CONFIG}.numExperts % {parallelism}.expert == 0)",
        "'so many GPUs cannot share the experts of spec.model.config evenly; give a divisor of numExperts'",
        f"{path}.parallelism.expert",
    )


MODEL_RULES: Final = (
    Rule(
        f"!has({_CONFIG}) || !has({_CONFIG}.maxPositionEmbeddings) || !has(self.spec.model.maxModelLen) || "
        f"self.spec.model.maxModelLen <= {_CONFIG}.maxPositionEmbeddings",
        "'is more than the spec.model.config.maxPositionEmbeddings that the model was made for; give at most that'",
        "spec.model.maxModelLen",
    ),
    *(rule for path in ROLE_PATHS for rule in _of_role(path)),
)
