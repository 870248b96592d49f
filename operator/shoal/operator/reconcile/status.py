"""What is, as conditions, a phase and one line for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from shoal.operator.api import InferenceService
from shoal.operator.api.advice import advise
from shoal.operator.api.roles import worker_roles
from shoal.operator.api.status import (
    Condition,
    ConditionState,
    ConditionType,
    Endpoints,
    InferenceServiceStatus,
    Phase,
    RoleStatus,
)
from shoal.operator.planner.kubernetes import workers_selector
from shoal.operator.planner.kubernetes.envoy import EDGE_PORT
from shoal.operator.reconcile.caches import CachesState
from shoal.operator.reconcile.observing import ENGINES, FRONTS, PODS, RoleState
from shoal.operator.reconcile.routes import RoutesState

_MAX_MESSAGE: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a reconcile came to know. Each step's problem keeps the later steps from being tried."""

    generation: int
    service: InferenceService | None = None
    """None: the object holds no valid spec."""
    invalid: str = ""
    """Why the spec is not accepted."""
    not_applied: tuple[str, str] | None = None
    """Reason and message of why the plan could not be applied."""
    roles: Mapping[str, RoleState] = field(default_factory=dict)
    routes: RoutesState = field(default_factory=RoutesState)
    caches: CachesState = field(default_factory=CachesState)
    namespace: str = "default"
    external_host: str = ""
    """Where the load balancer of the gateways' Service is; empty: it has none, or not yet."""


def status_of(findings: Findings, before: Sequence[Condition], now: str) -> InferenceServiceStatus:
    """The status to show. `before`: the conditions shown so far; `now`: RFC 3339, for those that change."""
    facts = _facts(findings, before)
    conditions = tuple(_condition(kind, *fact, findings.generation, before, now) for kind, fact in facts.items())
    phase, message = _phase(findings, facts)
    service = findings.service
    if service is None:
        return InferenceServiceStatus(
            observed_generation=findings.generation, phase=phase, message=message, conditions=conditions
        )
    name, roles = service.metadata.name, findings.roles
    engines = [roles[role] for role in ENGINES if role in roles]
    host = f"{name}.{findings.namespace}.svc"
    port = service.spec.gateway.port or EDGE_PORT
    return InferenceServiceStatus(
        observed_generation=findings.generation,
        phase=phase,
        message=message,
        gateways=_role(roles.get("gateway")),
        tokenizers=_role(roles.get("tokenizer")),
        workers=_total_of(engines, service) if engines else None,
        prefill=_role(roles.get("prefill")),
        decode=_role(roles.get("decode")),
        kv_stores=_role(roles.get("kv-store")),
        lora_registries=_role(roles.get("lora-registry")),
        workers_ready=_ready_of(engines) if engines else None,
        worker_selector=workers_selector(name),
        endpoints=Endpoints(
            grpc=f"{host}:{port}",
            http=f"http://{host}:{port}" if service.spec.gateway.http.enabled else None,
            external=f"{findings.external_host}:{port}" if findings.external_host else None,
        ),
        conditions=conditions,
    )


_Fact = tuple[ConditionState, str, str]


def _facts(findings: Findings, before: Sequence[Condition]) -> dict[ConditionType, _Fact]:
    """Type -> status, reason and message."""
    facts: dict[ConditionType, _Fact] = {}
    if findings.service is None:
        facts["Accepted"] = ("False", "InvalidSpec", findings.invalid)
        facts["Ready"] = ("False", "InvalidSpec", findings.invalid)
        return facts
    facts["Accepted"] = _accepted(findings.service)
    if findings.service.spec.paused:
        facts["Planned"] = ("Unknown", "Paused", "spec.paused is true: nothing is changed until it is false")
    elif findings.not_applied is not None:
        facts["Planned"] = ("False", *findings.not_applied)
    else:
        facts["Planned"] = ("True", "Applied", "every object is as planned")
    roles = findings.roles
    facts["WorkersReady"] = _role_fact([roles[name] for name in ENGINES if name in roles])
    facts["GatewaysReady"] = _role_fact([roles[name] for name in FRONTS if name in roles])
    facts["RoutesProgrammed"] = _routes(findings.routes)
    facts["CacheEventsFlowing"] = (findings.caches.status, findings.caches.reason, findings.caches.message)
    facts["Degraded"] = _degraded(findings, before)
    facts["Ready"] = _ready(findings, facts)
    return facts


def _accepted(service: InferenceService) -> _Fact:
    """With what `kubectl apply` is warned of, where the webhook answers: nobody saw that of manifests that came
    otherwise. A model that the spec says nothing of is known to the webhook at most."""
    advice = "; ".join(map(str, advise(service)))
    if advice:
        return "True", "ValidWithWarnings", f"the spec is valid, as far as it says itself; {advice}"
    return "True", "Valid", "the spec is valid"


def _role_fact(roles: Sequence[RoleState]) -> _Fact:
    if not roles:
        return "Unknown", "NotObserved", "there is no plan yet"
    behind = [role for role in roles if not role.is_ready]
    if not behind:
        return "True", "AllReady", ", ".join(_count(role) for role in roles)
    told = next((role for role in behind if role.trouble), behind[0])
    text = "; ".join(filter(None, [", ".join(_count(role) for role in behind), told.trouble]))
    return "False", told.reason or "Starting", text


def _routes(routes: RoutesState) -> _Fact:
    if routes.rejection:
        return "False", "Rejected", f"Envoy goes on with what it had, and refuses: {routes.rejection}"
    if not routes.num_envoys:
        return "Unknown", "NoEnvoys", "no Envoy is connected to an operator"
    if routes.num_waiting:
        waiting = f"{routes.num_waiting} of {routes.num_envoys} Envoys have yet to accept what they are told"
        return "Unknown", "Programming", waiting
    return "True", "Accepted", f"{routes.num_envoys} Envoys have accepted what they are told"


def _degraded(findings: Findings, before: Sequence[Condition]) -> _Fact:
    """Serving with less than what was asked for, or not at all any more."""
    roles = findings.roles
    if findings.routes.rejection:
        return "True", "RoutesRejected", _routes(findings.routes)[2]
    if not _serves(roles):
        if any(condition.type in ("Ready", "Degraded") and condition.status == "True" for condition in before):
            return "True", "NotServing", "nothing is served any more"
        return "False", "NotServing", "nothing is served yet"
    missing = [_count(role) for role in roles.values() if role.ready < role.desired]
    if missing:
        return "True", "PodsMissing", ", ".join(missing)
    if findings.caches.status == "False":
        return "True", findings.caches.reason, findings.caches.message
    return "False", "AllReady", "every pod is ready"


def _ready(findings: Findings, facts: Mapping[ConditionType, _Fact]) -> _Fact:
    if not _serves(findings.roles):
        for kind in ("Planned", "WorkersReady", "GatewaysReady"):
            status, reason, message = facts[kind]
            if status != "True":
                return "False", reason, message
        return "False", "NotObserved", "nothing is known of the pods yet"
    return "True", "Serving", "every role has a ready pod"


def _serves(roles: Mapping[str, RoleState]) -> bool:
    """KV stores need not be there: workers compute what they lack."""
    needed = [*FRONTS, *(name for name in ENGINES if name in roles)]
    return len(needed) > len(FRONTS) and all(name in roles and roles[name].ready > 0 for name in needed)


def _phase(findings: Findings, facts: Mapping[ConditionType, _Fact]) -> tuple[Phase, str]:
    if facts["Accepted"][0] == "False":
        return "Failed", facts["Accepted"][2][:_MAX_MESSAGE]
    if facts["Planned"][1] == "Paused":
        return "Paused", facts["Planned"][2]
    if facts["Planned"][0] == "False":
        return "Failed", facts["Planned"][2][:_MAX_MESSAGE]
    behind = [facts[kind][2] for kind in ("WorkersReady", "GatewaysReady") if facts[kind][0] != "True"]
    helpers = [role for name, role in findings.roles.items() if name not in (*ENGINES, *FRONTS) and not role.is_ready]
    behind += [_role_fact([role])[2] for role in helpers]
    behind += [facts[kind][2] for kind in ("RoutesProgrammed", "CacheEventsFlowing") if facts[kind][0] == "False"]
    if not behind:
        return "Ready", ""
    phase: Phase = "Updating" if _serves(findings.roles) else "Starting"
    if facts["Degraded"][0] == "True":
        phase = "Degraded"
    return phase, "; ".join(behind)[:_MAX_MESSAGE]


def _condition(
    kind: ConditionType,
    status: ConditionState,
    reason: str,
    message: str,
    generation: int,
    before: Sequence[Condition],
    now: str,
) -> Condition:
    same = next((condition for condition in before if condition.type == kind and condition.status == status), None)
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message[:_MAX_MESSAGE],
        last_transition_time=now if same is None else same.last_transition_time,
        observed_generation=generation,
    )


def _role(role: RoleState | None) -> RoleStatus | None:
    return None if role is None else RoleStatus(desired=role.desired, ready=role.ready)


def _total_of(roles: Sequence[RoleState], service: InferenceService) -> RoleStatus:
    """Of all roles. Autoscalers take `current` for what there is, and add to that: those that start count, or more
    would be asked for meanwhile, and those that only take over from others do not."""
    asked = sum(role.replicas for role in worker_roles(service.spec))
    return RoleStatus(
        desired=sum(role.desired for role in roles),
        ready=sum(role.ready for role in roles),
        current=min(asked, sum(role.current for role in roles)),
    )


def _ready_of(roles: Sequence[RoleState]) -> str:
    return f"{sum(role.ready for role in roles)}/{sum(role.desired for role in roles)}"


def _count(role: RoleState) -> str:
    rolling = "" if role.is_current or role.ready < role.desired else ", being replaced"
    return f"{role.ready} of {role.desired} {PODS.get(role.component, role.component)} ready{rolling}"
