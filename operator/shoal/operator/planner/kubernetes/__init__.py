"""Spec to Kubernetes objects. Pure: the same input gives the same objects, in the order in which to apply them.

    objects = plan(service, platform, owner, observe(live))   # live: what is there, if anything

Command lines are those of the local planner (`planner/commands.py`): pods and processes get the same flags. Golden
files are in `tests/unit/operator/golden/kubernetes`; the real API server takes every one of them in
`tests/integration/operator/cluster`.
"""

from shoal.operator.planner.kubernetes.feasibility import find_infeasible
from shoal.operator.planner.kubernetes.names import FIELD_MANAGER, MANAGED_BY, OWNER_LABEL, selector, workers_selector
from shoal.operator.planner.kubernetes.observed import Observed, ObservedGroup, observe
from shoal.operator.planner.kubernetes.plan import ALL_KINDS, KINDS, OPTIONAL_APIS, OPTIONAL_KINDS, plan
from shoal.operator.planner.kubernetes.platform import Manifest, Owner, Platform

__all__ = [
    "ALL_KINDS",
    "FIELD_MANAGER",
    "KINDS",
    "MANAGED_BY",
    "Manifest",
    "OPTIONAL_APIS",
    "OPTIONAL_KINDS",
    "OWNER_LABEL",
    "Observed",
    "ObservedGroup",
    "Owner",
    "Platform",
    "find_infeasible",
    "observe",
    "plan",
    "selector",
    "workers_selector",
]
