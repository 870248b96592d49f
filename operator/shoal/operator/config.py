"""Settings of the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from shoal.config import option
from shoal.telemetry.logs import LogFormat

Port = Annotated[int, Meta(ge=0, le=65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorConfig:
    """Keeps a cluster's InferenceServices as their specs say, and tells their Envoys where pods are."""

    namespaces: str = option("", "Namespaces to look after, with commas between; empty: all.")
    kubeconfig: str = option("", "File; empty: the pod's service account, outside of pods KUBECONFIG.")
    host: str = option("127.0.0.1", "Address to listen on for Envoys and health checks.")
    port: Port = option(18000, "Port for them; 0 picks a free one.")
    metrics_port: Port = option(9095, "Port for Prometheus metrics; 0 picks a free one.")
    control_plane: Annotated[str, Meta(pattern=r"^[^\s:]+:[0-9]{1,5}$")] = option(
        "shoal-operator.shoal-system.svc:18000", "host:port under which pods reach this operator."
    )
    tls_certificate: str = option(
        "", "File: certificate for discovery by TLS, which is then not to be had without; empty: no TLS."
    )
    tls_key: str = option("", "File: its key. Both are read again when they change, as those of a Secret do.")
    tls_port: Port = option(18443, "Port for discovery by TLS; --port is for health checks alone then.")
    control_plane_ca: str = option("", "File: certificates of whom pods are to trust to be this operator, with TLS.")
    lease_namespace: str = option(
        "", "Namespace of the Lease by which several operators agree on one that writes; empty: this one does."
    )
    identity: str = option("", "Name of this operator among several, such as the pod's; empty: host name and process.")
    webhook_configuration: str = option(
        "", "Name of the ValidatingWebhookConfiguration by which the API server asks this operator; empty: none does."
    )
    webhook_port: Port = option(9443, "HTTPS port for that; 0 picks a free one.")
    webhook_hosts: str = option(
        "shoal-operator.shoal-system.svc", "Names and addresses by which the API server calls it, with commas between."
    )
    webhook_secret: Annotated[str, Meta(pattern=r"^[a-z0-9][-a-z0-9]*/[a-z0-9][-a-z0-9.]*$")] = option(
        "shoal-system/shoal-operator-webhook", "namespace/name of the Secret that keeps its certificate."
    )
    model_facts: Literal["cache", "hub"] = option(
        "cache",
        "Where the webhook learns the size of models: in their cache (SHOAL_CACHE_DIR), or also from small files "
        "of the Hugging Face Hub.",
    )
    image_prefix: str = option("shoal/", "What comes before gateway, worker, kv-store and so on in images.")
    image_tag: str = option("0.1.0", "What comes after them.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = option("IfNotPresent", "Of all containers.")
    image_pull_secrets: Annotated[str, Meta(pattern=r"^([a-z0-9][-a-z0-9.]*(,[a-z0-9][-a-z0-9.]*)*)?$")] = option(
        "", "Secrets with which pods pull images, with commas between; each is looked for in the pods' own namespaces."
    )
    cluster_domain: str = option("cluster.local", "Domain of the cluster's names.")
    prometheus: Annotated[str, Meta(pattern=r"^https?://[^\s]+$")] = option(
        "http://prometheus-operated.monitoring.svc:9090", "URL of the Prometheus that KEDA asks for autoscaling."
    )
    reconcilers: Annotated[int, Meta(ge=1, le=64)] = option(4, "InferenceServices worked on at a time.")
    resync_s: Annotated[float, Meta(ge=1)] = option(
        60.0, "How often everything is listed and compared, should a watch have missed something."
    )
    cache_check_s: Annotated[float, Meta(ge=1)] = option(
        10.0, "How often gateways are asked, at their metrics' port, whether they hear of the workers' caches."
    )
    drain_timeout_s: Annotated[float, Meta(gt=0)] = option(5.0, "How long Envoys' streams may go on after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Least severe log lines shown.")
    log_format: LogFormat = option("auto", "auto is readable on a terminal, JSON elsewhere.")
