"""Makes the gateway's admission from its settings and its workers."""

from __future__ import annotations

from dataclasses import replace

from shoal.gateway.admission.admission import Admission
from shoal.gateway.admission.limits import QueueLimits, TenantPolicy, tenant_policies
from shoal.gateway.admission.room import Capacity
from shoal.gateway.config import Config
from shoal.gateway.peers.peers import Peers
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.workers.fleet import Fleet


def make_admission(config: Config, fleet: Fleet, loads: LoadTracker, peers: Peers | None) -> Admission | None:
    """None when flow control is off. Follows the fleet from now on. Raises ConfigError."""
    limits = queue_limits(config)
    if config.flow_control == "off":
        return None

    def capacity_of(model: str) -> Capacity | None:
        infos = fleet.ready_infos(model)
        num_sequences = sum(info.max_num_seqs for info in infos)
        if not num_sequences:
            return None
        num_tokens = sum(info.num_blocks * info.block_size for info in infos)
        return Capacity.of(len(infos), num_sequences, num_tokens, config.worker_queue_ratio)

    def others_of(model: str) -> int | None:
        if peers is None or not peers.num_followed:
            return None
        return sum(loads.elsewhere(address).num_requests for address in fleet.ready_endpoints(model))

    num_gateways = config.num_gateways
    admission = Admission(limits, capacity_of, num_gateways=num_gateways, others_of=others_of if peers else None)
    fleet.on_change = admission.refresh
    return admission


def queue_limits(config: Config) -> QueueLimits:
    """What the settings say. Raises ConfigError."""
    default = TenantPolicy()
    if config.max_queued_requests_per_tenant:
        default = replace(default, max_requests=config.max_queued_requests_per_tenant)
    if config.max_queued_tokens_per_tenant:
        default = replace(default, max_tokens=config.max_queued_tokens_per_tenant)
    return QueueLimits(
        max_requests=config.max_queued_requests,
        max_tokens=config.max_queued_tokens,
        max_age_s=config.max_queue_s,
        priority_step_s=config.priority_step_s,
        default_tenant=default,
        tenants=tenant_policies(
            default, config.tenant_weights, config.tenant_max_queued_requests, config.tenant_max_queued_tokens
        ),
    )
