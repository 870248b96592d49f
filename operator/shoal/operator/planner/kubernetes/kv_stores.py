"""KV stores: a sidecar of each worker's pod, or one for all workers of a node (`spec.kvCache.placement`; ADR 0026).

A worker talks to its store through a Unix socket and maps its memory, so both have a folder in common: the pod's own,
or one of the node. Stores that share know each other from a ConfigMap, which follows the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from shoal.operator.api import InferenceService
from shoal.operator.api.defaults import KvStoreSizes, kv_store_sizes
from shoal.operator.planner import commands
from shoal.operator.planner.kubernetes.groups import PlannedGroup
from shoal.operator.planner.kubernetes.names import manifest, object_name, selector
from shoal.operator.planner.kubernetes.observed import KV_STORE
from shoal.operator.planner.kubernetes.platform import Manifest, Owner, Platform
from shoal.operator.planner.kubernetes.pods import LIVENESS, USER_ID, Pod, container, grpc_probe, pod_template
from shoal.operator.planner.plan import Observed

COMPONENT: Final = KV_STORE
STORE_PORT: Final = 50054
STORE_METRICS_PORT: Final = 9054
PEER_PORTS: Final = (50064, 50074)
"""For calls of other stores, and for payloads."""
DRAIN_TIMEOUT_S: Final = 20.0
_SOCKET_DIR: Final = "/run/shoal-kv"
_DISK_DIR: Final = "/var/lib/shoal-kv"
_PEERS_DIR: Final = "/etc/shoal/kv-peers"
_PEERS_FILE: Final = "peers"
_SECRET_DIR: Final = "/etc/shoal/kv-secret"  # noqa: S105  # a folder
_NODE_DIR: Final = "/run/shoal"
"""Of nodes: below it a folder for each service."""
_OWN_FOLDERS: Final = f"""
import os, sys
for path in sys.argv[1:]:
    if os.stat(path).st_uid != {USER_ID}:
        os.chmod(path, 0o700)
        os.chown(path, {USER_ID}, {USER_ID})
"""
_STOCKTAKING_S: Final = 300
"""How long a store may take until it answers: it looks through its disk."""


def kv_store_placement(service: InferenceService) -> str | None:
    """Pod or Node; None without a KV store."""
    kv_cache = service.spec.kv_cache
    return None if kv_cache.cpu is None else kv_cache.placement


def place_for_workers(service: InferenceService, platform: Platform, owner: Owner) -> commands.KvStorePlace | None:
    """Where a worker finds its store; None without one."""
    if service.spec.kv_cache.cpu is None:
        return None
    host = "127.0.0.1"
    if service.spec.kv_cache.placement == "Node":
        host = f"{object_name(service, COMPONENT)}.{owner.namespace}.svc.{platform.cluster_domain}"
    return commands.KvStorePlace(socket=f"{_SOCKET_DIR}/kv.sock", address=f"{host}:{STORE_PORT}")


def socket_mount() -> dict[str, str]:
    """Of the worker's container."""
    return {"name": "kv-socket", "mountPath": _SOCKET_DIR}


def socket_volume(service: InferenceService, owner: Owner) -> dict[str, Any]:
    """Where both find the socket."""
    if service.spec.kv_cache.placement == "Pod":
        return {"name": "kv-socket", "emptyDir": {}}
    path = f"{_NODE_DIR}/{owner.namespace}/{service.metadata.name}"
    return {"name": "kv-socket", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}


def sidecar(
    service: InferenceService, observed: Observed, platform: Platform, owner: Owner, group: PlannedGroup
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The container for a worker's pod, and its volumes beside the socket's."""
    # A worker of several pods has a Service for each: theirs are no names that could be known beforehand.
    domain = None if group.kind != "StatefulSet" else f"{group.governing}.{_domain(platform, owner)}"
    address = None if domain is None else f"$(POD_NAME).{domain}:{PEER_PORTS[0]}"
    return _container(service, observed, platform, address), _volumes(service, owner, address is not None)


def kv_stores(
    service: InferenceService,
    observed: Observed,
    platform: Platform,
    owner: Owner,
    placement: Mapping[str, Any],
) -> list[Manifest]:
    """One for each node: DaemonSet, and the Service by which a worker reaches its own node's. placement: where the
    workers' pods may run."""
    store = _container(service, observed, platform, f"$(POD_IP):{PEER_PORTS[0]}")
    volume = service.spec.kv_cache.ssd_volume
    on_node = {"kv-socket": _SOCKET_DIR}
    if volume is not None and volume.host_path is not None:
        on_node["kv-disk"] = _DISK_DIR
    pod = Pod(
        component=COMPONENT,
        containers=[store],
        volumes=[socket_volume(service, owner), *_volumes(service, owner, True)],
        drain_timeout_s=DRAIN_TIMEOUT_S,
        initial=[_owner_of_folders(platform, on_node)],
        fields=placement,
        is_spread=False,
    )
    spec = {
        "selector": {"matchLabels": selector(service.metadata.name, COMPONENT)},
        # Two stores cannot have the same folders.
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        "template": pod_template(service, pod),
    }
    of_own_node = {
        "type": "ClusterIP",
        "internalTrafficPolicy": "Local",
        "selector": selector(service.metadata.name, COMPONENT),
        "ports": [
            {"name": name, "port": port, "targetPort": port, "protocol": "TCP"}
            for name, port in (("grpc", STORE_PORT), ("kv-metrics", STORE_METRICS_PORT))
        ],
    }
    return [
        manifest(service, owner, "v1", "Service", COMPONENT, spec=of_own_node),
        manifest(service, owner, "apps/v1", "DaemonSet", COMPONENT, spec=spec),
    ]


def peers_config(service: InferenceService, owner: Owner, addresses: Iterable[str]) -> Manifest:
    """The ConfigMap that all stores read, and read again as it changes."""
    lines = "".join(f"{address}\n" for address in sorted(addresses))
    return manifest(service, owner, "v1", "ConfigMap", COMPONENT, data={_PEERS_FILE: lines})


def addresses_of_workers(groups: Sequence[tuple[str, str, int]], platform: Platform, owner: Owner) -> list[str]:
    """Of stores in the pods of StatefulSets: name, governing Service, and replicas of each."""
    return [
        f"{name}-{index}.{governing}.{_domain(platform, owner)}:{PEER_PORTS[0]}"
        for name, governing, replicas in groups
        for index in range(replicas)
    ]


def addresses_of_nodes(addresses: Iterable[str]) -> list[str]:
    """Of stores with an IPv4 address each. With IPv6 alone they share nothing: a store could not tell its own, which
    its pod's fields have without brackets."""
    return [f"{address}:{PEER_PORTS[0]}" for address in addresses if ":" not in address]


def _domain(platform: Platform, owner: Owner) -> str:
    return f"{owner.namespace}.svc.{platform.cluster_domain}"


def _container(
    service: InferenceService, observed: Observed, platform: Platform, address: str | None
) -> dict[str, Any]:
    """address: what other stores call it; None: it shares with none."""
    sizes, secret = kv_store_sizes(service.spec), service.spec.kv_cache.peers_secret
    assert sizes is not None, "the caller knows that there is one"
    peers = None
    if secret is not None and address is not None:
        peers = commands.KvPeers(
            f"{_PEERS_DIR}/{_PEERS_FILE}", address, *PEER_PORTS, secret_file=f"{_SECRET_DIR}/{secret.key}"
        )
    argv = commands.kv_store(
        service,
        observed,
        "0.0.0.0",  # noqa: S104  # a pod's own address; NetworkPolicies say who may come
        {"grpc": STORE_PORT, "metrics": STORE_METRICS_PORT},
        sizes=sizes,
        socket=f"{_SOCKET_DIR}/kv.sock",
        disk_folder=_DISK_DIR,
        drain_timeout_s=DRAIN_TIMEOUT_S,
        peers=peers,
    )
    sharing_ports = {} if peers is None else {"kv-peer": PEER_PORTS[0], "kv-data": PEER_PORTS[1]}
    store = container(
        platform,
        COMPONENT,
        image=COMPONENT,
        command=argv[:3],
        args=argv[3:],
        env=commands.environment(num_threads=1),
        from_pod={"NODE_NAME": "spec.nodeName", "POD_IP": "status.podIP", "POD_NAME": "metadata.name"},
        ports={"kv-grpc": STORE_PORT, "kv-metrics": STORE_METRICS_PORT, **sharing_ports},
        resources=_resources(sizes),
        mounts=_mounts(sizes, peers),
        # No readiness: workers go on without their store, and are not to wait for it.
        livenessProbe=grpc_probe(failures=12, service=LIVENESS, port=STORE_PORT, initialDelaySeconds=_STOCKTAKING_S),
    )
    for mount in store["volumeMounts"]:
        if mount["name"] == "kv-disk":
            mount.update(_folder_of_each(service))
    return store


def _folder_of_each(service: InferenceService) -> dict[str, str]:
    """On a volume that all stores share, a folder that is a store's own again after a restart."""
    volume, kv_cache = service.spec.kv_cache.ssd_volume, service.spec.kv_cache
    if volume is None or volume.claim is None:
        return {}
    own = "$(NODE_NAME)" if kv_cache.placement == "Node" else "$(POD_NAME)"
    return {"subPathExpr": f"{service.metadata.name}/{own}"}


def _mounts(sizes: KvStoreSizes, peers: commands.KvPeers | None) -> dict[str, str]:
    return {
        "kv-socket": _SOCKET_DIR,
        **({"kv-disk": _DISK_DIR} if sizes.disk_bytes else {}),
        **({} if peers is None else {"kv-peers": _PEERS_DIR, "kv-secret": _SECRET_DIR}),
    }


def _volumes(service: InferenceService, owner: Owner, can_share: bool) -> list[dict[str, Any]]:
    kv_cache, volumes = service.spec.kv_cache, []
    sizes = kv_store_sizes(service.spec)
    if sizes is not None and sizes.disk_bytes:
        volumes.append({"name": "kv-disk", **_disk(service, owner, sizes.disk_bytes)})
    if kv_cache.peers_secret is not None and can_share:
        secret = kv_cache.peers_secret
        items = [{"key": secret.key, "path": secret.key}]
        volumes += [
            {"name": "kv-peers", "configMap": {"name": object_name(service, COMPONENT)}},
            {"name": "kv-secret", "secret": {"secretName": secret.name, "items": items, "defaultMode": 0o440}},
        ]
    return volumes


def _disk(service: InferenceService, owner: Owner, num_bytes: int) -> dict[str, Any]:
    volume = service.spec.kv_cache.ssd_volume
    if volume is not None and volume.host_path is not None:
        # A node's folders have no namespace: services of one name, as of staging and production, would share one.
        path = f"{volume.host_path.rstrip('/')}/{owner.namespace}/{service.metadata.name}"
        return {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    if volume is not None and volume.claim is not None:
        return {"persistentVolumeClaim": {"claimName": volume.claim}}
    # A file system needs some of it for itself.
    storage = str(num_bytes + num_bytes // 10)
    if volume is None or volume.storage_class_name is None:
        return {"emptyDir": {"sizeLimit": storage}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": volume.storage_class_name,
        "resources": {"requests": {"storage": storage}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _owner_of_folders(platform: Platform, mounts: Mapping[str, str]) -> dict[str, Any]:
    """Folders of a node are made by its kubelet, for root alone. This gives them to the store, and nothing else."""
    found = container(
        platform,
        "own-folders",
        image=COMPONENT,
        command=("python", "-c", _OWN_FOLDERS),
        args=list(mounts.values()),
        env={},
        ports={},
        resources={"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        mounts=mounts,
    )
    found["securityContext"] |= {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False}
    found["securityContext"]["capabilities"] = {"drop": ["ALL"], "add": ["CHOWN"]}
    return found


def _resources(sizes: KvStoreSizes) -> dict[str, Any]:
    """Blocks are shared memory, which counts as the store's; so does what clients write through, up to 1 GiB."""
    return {
        "requests": {"cpu": "500m", "memory": str(sizes.memory_bytes + (512 << 20))},
        "limits": {"memory": str(sizes.memory_bytes + (2 << 30))},
    }
