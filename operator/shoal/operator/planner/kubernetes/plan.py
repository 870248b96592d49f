"""One InferenceService as Kubernetes objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec.structs import replace

from shoal.operator.api import InferenceService, Machine
from shoal.operator.api.spec import Auth, SecretReference
from shoal.operator.planner.kubernetes import gateways, kv_stores, lora_registries, network, tokenizers
from shoal.operator.planner.kubernetes.groups import GroupPlan, plan_groups
from shoal.operator.planner.kubernetes.monitoring import MONITORING_API, monitors
from shoal.operator.planner.kubernetes.names import COMPONENT_LABEL, manifest, selector
from shoal.operator.planner.kubernetes.observed import Observed
from shoal.operator.planner.kubernetes.platform import Manifest, Owner, Platform
from shoal.operator.planner.kubernetes.rolling import make_room
from shoal.operator.planner.kubernetes.scaling import HPA_API, KEDA_API, autoscaling, within_bounds
from shoal.operator.planner.kubernetes.workers import LWS_API, nodes_of, workers
from shoal.operator.planner.model_uri import model_source
from shoal.operator.planner.plan import Observed as InPods


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object that plans hold."""

    api_version: str
    kind: str
    plural: str


KINDS: Final = (
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("v1", "ConfigMap", "configmaps"),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("v1", "Service", "services"),
    Kind("apps/v1", "DaemonSet", "daemonsets"),
    Kind("apps/v1", "StatefulSet", "statefulsets"),
    Kind("apps/v1", "Deployment", "deployments"),
    Kind(HPA_API, "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
)
"""What every cluster has, in the order in which to apply them: what pods need comes before pods."""
OPTIONAL_KINDS: Final = (
    Kind(LWS_API, "LeaderWorkerSet", "leaderworkersets"),
    Kind(KEDA_API, "ScaledObject", "scaledobjects"),
    Kind(MONITORING_API, "ServiceMonitor", "servicemonitors"),
    Kind(MONITORING_API, "PrometheusRule", "prometheusrules"),
)
"""What plans hold where `Platform.apis` says that the cluster has it; applied after the others."""
OPTIONAL_APIS: Final = frozenset(kind.api_version for kind in OPTIONAL_KINDS)
"""Of a cluster that has everything that a plan can use."""
ALL_KINDS: Final = (*KINDS, *OPTIONAL_KINDS)


def plan(
    service: InferenceService, platform: Platform, owner: Owner, observed: Observed | None = None
) -> tuple[Manifest, ...]:
    """The objects, in the order of ALL_KINDS and of their names. observed: what is there already; None: nothing is.

    The service must be free of contradictions, those of Kubernetes included, and feasible on that platform
    (`find_infeasible`). While workers are replaced a plan is one
    step, and the next one comes of what that led to: plan again whenever `observe` says something else.
    """
    seen = _seen_in_pods(service, platform)
    in_pods = InPods(
        machine=Machine(num_cores=1, memory_bytes=0),
        run_dir="/run/shoal",
        log_dir="/tmp",  # noqa: S108  # the pod's own
        model_path=model_source(service.spec.model),
        python="python",
        envoy="envoy",
        ports={},
    )
    there = observed or Observed()
    groups = plan_groups(seen, there)
    engines = _engines(groups)
    components = [gateways.COMPONENT, tokenizers.COMPONENT, *engines]
    components += [lora_registries.COMPONENT] if seen.spec.adapters else []
    objects = [
        manifest(seen, owner, "v1", "ServiceAccount", name, automountServiceAccountToken=False) for name in components
    ]
    objects += network.network_policies(seen, owner, engines) + network.services(seen, owner)
    objects += [_disruption_budget(seen, owner, name) for name in components]
    workloads = _workloads(seen, in_pods, platform, owner, groups)
    objects += [*workloads, *_kv_stores(seen, in_pods, platform, owner, workloads, there)]
    for component in (tokenizers.tokenizers, gateways.gateways, lora_registries.lora_registries):
        objects += component(seen, in_pods, platform, owner)
    objects += autoscaling(seen, platform, owner) + monitors(seen, platform, owner)
    order = {kind.kind: index for index, kind in enumerate(ALL_KINDS)}
    # Copied, so that no two places are one value: what changes one must not change the other.
    copies: list[Manifest] = msgspec.json.decode(msgspec.json.encode(objects))
    return tuple(sorted(copies, key=lambda found: (order[found["kind"]], found["metadata"]["name"])))


def _engines(groups: GroupPlan) -> dict[str, bool]:
    """Components of workers, and whether one of those is several pods. Pods of a role that the spec has no more may
    have to be made again until they are all gone."""
    kinds = [(group.role.component, group.kind) for group in groups.groups]
    kinds += [(each["metadata"]["labels"][COMPONENT_LABEL], each["kind"]) for each in groups.draining]
    return {component: (component, "LeaderWorkerSet") in kinds for component, _ in kinds}


def _workloads(
    service: InferenceService, in_pods: InPods, platform: Platform, owner: Owner, groups: GroupPlan
) -> list[Manifest]:
    """Of engines, those on their way out too."""
    made = (
        make_room(workers(service, in_pods, platform, owner, group), group.known, service.spec.rollout)
        for group in groups.groups
    )
    return [*groups.draining, *made]


def _kv_stores(
    service: InferenceService,
    in_pods: InPods,
    platform: Platform,
    owner: Owner,
    workloads: Sequence[Manifest],
    observed: Observed,
) -> list[Manifest]:
    """What KV stores need beside the workers' pods."""
    where, shares = kv_stores.kv_store_placement(service), service.spec.kv_cache.peers_secret is not None
    objects: list[Manifest] = []
    if where == "Node":
        name = kv_stores.COMPONENT
        objects.append(manifest(service, owner, "v1", "ServiceAccount", name, automountServiceAccountToken=False))
        objects += kv_stores.kv_stores(service, in_pods, platform, owner, nodes_of(service))
    if where is not None and shares:
        addresses = kv_stores.addresses_of_nodes(observed.kv_store_addresses)
        if where == "Pod":
            addresses = kv_stores.addresses_of_workers(_stateful_sets(workloads), platform, owner)
        objects.append(kv_stores.peers_config(service, owner, addresses))
    return objects


def _stateful_sets(workloads: Sequence[Manifest]) -> list[tuple[str, str, int]]:
    """Name, governing Service and replicas of each."""
    found = [each for each in workloads if each["kind"] == "StatefulSet"]
    return [(each["metadata"]["name"], each["spec"]["serviceName"], each["spec"]["replicas"]) for each in found]


def _seen_in_pods(service: InferenceService, platform: Platform) -> InferenceService:
    """The spec with the paths that files have in pods, the operator's pull secrets behind its own, and a number of
    workers that autoscaling allows."""
    secrets = (*service.spec.image_pull_secrets, *(SecretReference(name=name) for name in platform.image_pull_secrets))
    spec = replace(within_bounds(service.spec), image_pull_secrets=tuple(dict.fromkeys(secrets)))
    service = replace(service, spec=spec)
    gateway = service.spec.gateway
    if gateway.auth is None:
        return service
    path = f"{gateways.API_KEYS_DIR}/{gateways.API_KEYS_FILE}"
    auth = Auth(api_keys_file=path, api_keys_secret=gateway.auth.api_keys_secret)
    return replace(service, spec=replace(service.spec, gateway=replace(gateway, auth=auth)))


def _disruption_budget(service: InferenceService, owner: Owner, component: str) -> Manifest:
    """Nodes are drained one pod at a time: its streams move to the others before the next one goes."""
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": selector(service.metadata.name, component)},
    }
    return manifest(service, owner, "policy/v1", "PodDisruptionBudget", component, spec=spec)
