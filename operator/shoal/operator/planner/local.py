"""Plans one InferenceService for one machine."""

from __future__ import annotations

from shoal.operator.api import InferenceService
from shoal.operator.api.defaults import kv_store_sizes
from shoal.operator.envoy import Endpoint, EnvoyOptions, clusters, endpoints_file, render_files
from shoal.operator.envoy.config import BOOTSTRAP_FILE, eds_file, render
from shoal.operator.planner import commands
from shoal.operator.planner.plan import LocalPlan, Observed, ProcessPlan, Readiness, ReadinessKind

HOST = "127.0.0.1"
ADMIN_SOCKET = "admin.sock"
KV_STORE = "kv-store"

_WORKER_DEADLINE_S = 600.0  # reads the weights: a large model from a slow disk
_KV_STORE_DEADLINE_S = 120.0  # takes stock of its disk
_TOKENIZER_DEADLINE_S = 120.0
_GATEWAY_DEADLINE_S = 60.0
_ENVOY_DEADLINE_S = 30.0
_GATEWAY_DRAIN_S = 30.0  # running streams may finish
_BEHIND_DRAIN_S = 5.0  # workers and tokenizers: their calls ended with the gateway's


def required_ports(service: InferenceService) -> tuple[str, ...]:
    """Names of the ports that `plan` needs, in a fixed order. `edge` is where clients connect."""
    spec = service.spec
    names = ["edge", "mesh"]
    names += [f"tokenizer-{i}/{port}" for i in range(spec.tokenizer.replicas) for port in ("grpc", "metrics")]
    if spec.kv_cache.cpu is not None:
        names += [f"{KV_STORE}/{port}" for port in ("grpc", "metrics")]
    names += [f"worker-{i}/{port}" for i in range(spec.workers.replicas) for port in ("grpc", "metrics")]
    names += [f"gateway-{i}/{port}" for i in range(spec.gateway.replicas) for port in _gateway_ports(service)]
    return tuple(names)


def plan(service: InferenceService, observed: Observed) -> LocalPlan:
    """The plan. Raises KeyError when `observed.ports` lacks a required port, IndexError when a GPU is lacking."""
    spec = service.spec
    tokenizers = [_tokenizer(service, observed, i) for i in range(spec.tokenizer.replicas)]
    stores = _kv_stores(service, observed)
    workers = [_worker(service, observed, i) for i in range(spec.workers.replicas)]
    envoy = _envoy(service, observed)
    behind = tuple(process.name for process in (envoy, *tokenizers, *workers))
    gateways = [_gateway(service, observed, i, behind) for i in range(spec.gateway.replicas)]
    edge = Endpoint(HOST, observed.ports["edge"])
    return LocalPlan(
        name=service.metadata.name,
        processes=(envoy, *tokenizers, *stores, *workers, *gateways),
        files={**render_files(_envoy_options(service, observed, edge), {}), **_peers_file(service)},
        edge=edge,
        notes=_notes(service, observed),
    )


def _tokenizer(service: InferenceService, observed: Observed, index: int) -> ProcessPlan:
    name = f"tokenizer-{index}"
    ports = _ports(observed, name, ("grpc", "metrics"))
    return ProcessPlan(
        name=name,
        component="tokenizer",
        argv=commands.tokenizer(service, observed, HOST, ports, drain_timeout_s=_BEHIND_DRAIN_S),
        env=commands.environment(num_threads=1),
        ports=ports,
        readiness=_grpc_readiness(ports["grpc"], _TOKENIZER_DEADLINE_S),
        drain_timeout_s=_BEHIND_DRAIN_S + 5.0,
    )


def _kv_stores(service: InferenceService, observed: Observed) -> list[ProcessPlan]:
    """The node's KV store, if there is to be one. Workers do not wait for it: they go on without."""
    sizes = kv_store_sizes(service.spec)
    if sizes is None:
        return []
    ports = _ports(observed, KV_STORE, ("grpc", "metrics"))
    argv = commands.kv_store(
        service,
        observed,
        HOST,
        ports,
        sizes=sizes,
        socket=_kv_store_place(observed).socket,
        disk_folder=service.spec.kv_cache.ssd_folder or "",
        drain_timeout_s=_BEHIND_DRAIN_S,
    )
    return [
        ProcessPlan(
            name=KV_STORE,
            component="kv_store",
            argv=argv,
            env=commands.environment(num_threads=1),
            ports=ports,
            readiness=_grpc_readiness(ports["grpc"], _KV_STORE_DEADLINE_S),
            drain_timeout_s=_BEHIND_DRAIN_S + 5.0,
        )
    ]


def _kv_store_place(observed: Observed) -> commands.KvStorePlace:
    address = f"{HOST}:{observed.ports[f'{KV_STORE}/grpc']}"
    return commands.KvStorePlace(socket=f"{observed.run_dir}/kv.sock", address=address)


def _worker(service: InferenceService, observed: Observed, index: int) -> ProcessPlan:
    name = f"worker-{index}"
    ports = _ports(observed, name, ("grpc", "metrics"))
    threads = worker_threads(service, observed)
    gpu = observed.machine.gpus[index] if service.spec.workers.device == "cuda" else None
    return ProcessPlan(
        name=name,
        component="worker",
        argv=commands.worker(
            service,
            observed,
            HOST,
            ports,
            threads=threads,
            drain_timeout_s=_BEHIND_DRAIN_S,
            kv_store=None if service.spec.kv_cache.cpu is None else _kv_store_place(observed),
        ),
        env=commands.environment(num_threads=threads, gpu=gpu),
        ports=ports,
        readiness=_grpc_readiness(ports["grpc"], _WORKER_DEADLINE_S),
        serves={clusters.WORKER: Endpoint(HOST, ports["grpc"])},
        drain_timeout_s=_BEHIND_DRAIN_S + 5.0,
    )


def _gateway(service: InferenceService, observed: Observed, index: int, behind: tuple[str, ...]) -> ProcessPlan:
    name = f"gateway-{index}"
    ports = _ports(observed, name, _gateway_ports(service))
    serves = {
        clusters.GATEWAY_GRPC: Endpoint(HOST, ports["grpc"]),
        clusters.GATEWAY_HTTP: Endpoint(HOST, ports["http"]),
    }
    if "peer" in ports:
        serves[clusters.GATEWAY_PEERS] = Endpoint(HOST, ports["peer"])
    num_tokenizers = service.spec.tokenizer.replicas
    tokenizers = [f"{HOST}:{observed.ports[f'tokenizer-{i}/grpc']}" for i in range(num_tokenizers)]
    return ProcessPlan(
        name=name,
        component="gateway",
        argv=commands.gateway(
            service,
            observed,
            HOST,
            ports,
            mesh=Endpoint(HOST, observed.ports["mesh"]),
            tokenizer_target="ipv4:" + ",".join(tokenizers),
            workers_file=f"{observed.run_dir}/{eds_file(clusters.WORKER)}",
            peers_file=f"{observed.run_dir}/{eds_file(clusters.GATEWAY_PEERS)}",
            drain_timeout_s=_GATEWAY_DRAIN_S,
        ),
        env=commands.environment(num_threads=1),
        ports=ports,
        readiness=_grpc_readiness(ports["grpc"], _GATEWAY_DEADLINE_S),
        depends_on=behind,
        serves=serves,
        drain_timeout_s=_GATEWAY_DRAIN_S + 5.0,
    )


def _gateway_ports(service: InferenceService) -> tuple[str, ...]:
    """One gateway has nobody to tell anything."""
    return ("grpc", "http", "metrics", *(("peer",) if service.spec.gateway.replicas > 1 else ()))


def _peers_file(service: InferenceService) -> dict[str, str]:
    """Nobody is there yet; gateways join as they become ready."""
    if service.spec.gateway.replicas == 1:
        return {}
    return {eds_file(clusters.GATEWAY_PEERS): render(endpoints_file(clusters.GATEWAY_PEERS, ()))}


def _envoy(service: InferenceService, observed: Observed) -> ProcessPlan:
    return ProcessPlan(
        name="envoy",
        component="envoy",
        argv=commands.envoy(
            observed.envoy,
            f"{observed.run_dir}/{BOOTSTRAP_FILE}",
            concurrency=envoy_concurrency(observed.machine.num_cores),
            log_level=service.spec.observability.log_level,
        ),
        ports={"edge": observed.ports["edge"], "mesh": observed.ports["mesh"]},
        log_files=tuple(filter(None, (_access_log(service, observed),))),
        readiness=Readiness(
            kind=ReadinessKind.ENVOY_ADMIN,
            target=f"{observed.run_dir}/{ADMIN_SOCKET}",
            path="/ready",
            deadline_s=_ENVOY_DEADLINE_S,
        ),
    )


def _access_log(service: InferenceService, observed: Observed) -> str | None:
    return f"{observed.log_dir}/access.log" if service.spec.observability.access_log else None


def _envoy_options(service: InferenceService, observed: Observed, edge: Endpoint) -> EnvoyOptions:
    return EnvoyOptions(
        node_id=service.metadata.name,
        run_dir=observed.run_dir,
        admin_socket=f"{observed.run_dir}/{ADMIN_SOCKET}",
        edge=edge,
        mesh=Endpoint(HOST, observed.ports["mesh"]),
        num_workers=service.spec.workers.replicas,
        balancing="prefix_hash" if service.spec.routing.policy == "prefix_hash" else "orca",
        access_log=_access_log(service, observed),
    )


def worker_threads(service: InferenceService, observed: Observed) -> int:
    """Compute threads of each worker: as asked, or an equal share of the cores."""
    workers = service.spec.workers
    return workers.threads or max(1, observed.machine.num_cores // workers.replicas)


def envoy_concurrency(num_cores: int) -> int:
    """Envoy's threads. One carries 45,000 calls a second, far more than CPU workers on the same machine can take."""
    return max(1, min(4, num_cores // 4))


def _notes(service: InferenceService, observed: Observed) -> tuple[str, ...]:
    total = worker_threads(service, observed) * service.spec.workers.replicas
    cores = observed.machine.num_cores
    if total <= cores:
        return ()
    return (f"workers have {total} compute threads on {cores} cores and will slow each other down",)


def _ports(observed: Observed, name: str, kinds: tuple[str, ...]) -> dict[str, int]:
    return {kind: observed.ports[f"{name}/{kind}"] for kind in kinds}


def _grpc_readiness(port: int, deadline_s: float) -> Readiness:
    return Readiness(kind=ReadinessKind.GRPC_HEALTH, target=f"{HOST}:{port}", deadline_s=deadline_s)
