"""Spec to plan: what to run, with which arguments, in which order. Pure: the same input gives the same plan.

    ports = required_ports(service)          # what to allocate
    local = plan(service, observed)          # observed: those ports, the machine, the run directory, the model's path

Called by `shoal.operator.substrate`; golden plans are in `tests/unit/operator/golden`.
"""

from shoal.operator.planner.local import plan, required_ports
from shoal.operator.planner.plan import LocalPlan, Observed, ProcessPlan, Readiness, ReadinessKind

__all__ = [
    "LocalPlan",
    "Observed",
    "ProcessPlan",
    "Readiness",
    "ReadinessKind",
    "plan",
    "required_ports",
]
