"""The rules over several fields that the API server can check by itself (CEL).

Each has the same meaning as a rule of `rules.py`, `role_rules.py`, `operation_rules.py`, `model_rules.py` or
`kubernetes_rules.py` and points at the same field; tests hold both to one table of bad manifests. Expressions see the
object after defaulting, `self` being the whole object. Messages quote text and no numbers: the API server takes the
length of a number as text for unbounded, and refuses schemas whose messages could be long. The webhook's messages have
them, but it is asked only where CEL found nothing.
"""

from __future__ import annotations

from typing import Final

from shoal.operator.api.cel.base import BASE_RULES
from shoal.operator.api.cel.model import MODEL_RULES
from shoal.operator.api.cel.operation import OPERATION_RULES
from shoal.operator.api.cel.roles import ROLE_RULES
from shoal.operator.api.cel.rule import Rule

RULES: Final = (*BASE_RULES, *ROLE_RULES, *OPERATION_RULES, *MODEL_RULES)
__all__ = ["RULES", "Rule"]
