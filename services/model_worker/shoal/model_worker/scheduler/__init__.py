"""Policy: which tokens of which requests the next step computes. No torch."""

from shoal.model_worker.scheduler.limits import SchedulerConfig, queue_full
from shoal.model_worker.scheduler.output import Finished, SchedulerStats, StepOutput
from shoal.model_worker.scheduler.policy import FcfsPolicy, Policy, PolicyName, PriorityPolicy, make_policy
from shoal.model_worker.scheduler.scheduler import Scheduler

__all__ = [
    "FcfsPolicy",
    "Finished",
    "Policy",
    "PolicyName",
    "PriorityPolicy",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "StepOutput",
    "make_policy",
    "queue_full",
]
