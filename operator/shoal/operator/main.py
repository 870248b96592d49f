"""`shoal-operator`: the operator as a process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import grpc.aio
import structlog
import uvloop
from kubernetes_asyncio.config import ConfigException
from prometheus_client import REGISTRY

from shoal.config import describe, load_or_exit
from shoal.operator.config import OperatorConfig
from shoal.operator.envoy import Endpoint
from shoal.operator.planner.kubernetes import Platform
from shoal.operator.planner.kubernetes.platform import IMAGES
from shoal.operator.reconcile.api_client import ApiClient, ApiError
from shoal.operator.reconcile.controller import Controller, ControllerOptions
from shoal.operator.reconcile.metrics import OperatorCollector
from shoal.operator.webhook import WebhookOptions, serve_webhook
from shoal.operator.webhook.keeping import Place
from shoal.operator.webhook.known_models import KnownModels
from shoal.operator.xds import DiscoveryServer
from shoal.operator.xds.secure import serving_securely
from shoal.operator.xds.server import SERVICE
from shoal.rpc.server import Registration, ServerOptions, start_server, stop_signal
from shoal.telemetry import serve_metrics, setup_logs

# Objects of the cluster are many, long-lived and without cycles: looking for those was 13% of the work (60 services).
_GC_THRESHOLDS: Final = (50_000, 20, 50)
_log = structlog.get_logger("shoal.operator")


def main() -> None:
    """Runs until SIGTERM or SIGINT. Exits 2 for wrong settings, 1 when the API server or a port cannot be had."""
    config = load_or_exit(OperatorConfig, program="shoal-operator")
    setup_logs("operator", level=config.log_level, log_format=config.log_format)
    _log.info("configuration", **describe(config))
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        metrics_port, stop_metrics = serve_metrics(config.host, config.metrics_port)
        _log.info("metrics", address=f"{config.host}:{metrics_port}")
        uvloop.run(serve(config))
        stop_metrics()
    except (ApiError, ConfigException, OSError) as error:
        _log.error("cannot run", error=str(error))
        sys.exit(1)


async def serve(config: OperatorConfig) -> None:
    """Raises ApiError, ConfigException, OSError."""
    stop, ready = stop_signal(), asyncio.Event()
    kubeconfig = Path(config.kubeconfig) if config.kubeconfig else None
    namespaces = tuple(filter(None, (name.strip() for name in config.namespaces.split(","))))
    options = ControllerOptions(
        namespaces=namespaces,
        num_reconcilers=config.reconcilers,
        resync_interval_s=config.resync_s,
        cache_check_interval_s=config.cache_check_s,
        lease_namespace=config.lease_namespace,
        identity=config.identity or f"{socket.gethostname()}-{os.getpid()}",
    )
    async with await ApiClient.connect(kubeconfig) as api, contextlib.AsyncExitStack() as stack:
        controller = Controller(api, platform_of(config), options)
        REGISTRY.register(OperatorCollector(controller))
        discovery = DiscoveryServer(controller.snapshots)

        def add(_: object, server: grpc.aio.Server) -> None:
            if not config.tls_certificate:
                discovery.add_to(server)

        listening = ServerOptions(config.host, config.port, config.drain_timeout_s)
        server = await start_server(listening, [Registration(add, discovery, SERVICE)])
        _log.info("serving", address=f"{config.host}:{server.port}")
        if config.tls_certificate:
            files = Path(config.tls_certificate), Path(config.tls_key)
            by_tls = replace(listening, port=config.tls_port)
            port = await stack.enter_async_context(serving_securely(discovery, by_tls, *files))
            _log.info("serving by TLS", address=f"{config.host}:{port}")
        running = asyncio.ensure_future(controller.run(stop, ready))
        watching = asyncio.ensure_future(ready.wait())
        answering = asyncio.ensure_future(_answer_webhook(api, config, controller))
        try:
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await server.set_serving(True)
                _log.info("watching", namespaces=namespaces or "all")
            await running
        finally:
            for task in (watching, answering, running):
                task.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            await server.stop(config.drain_timeout_s)


async def _answer_webhook(api: ApiClient, config: OperatorConfig, controller: Controller) -> None:
    if not config.webhook_configuration:
        return
    namespace, _, secret = config.webhook_secret.partition("/")
    options = WebhookOptions(
        host=config.host,
        port=config.webhook_port,
        hosts=tuple(filter(None, (host.strip() for host in config.webhook_hosts.split(",")))),
        place=Place(namespace=namespace, secret=secret, configuration=config.webhook_configuration),
        refresh_interval_s=config.resync_s,
    )
    models = KnownModels(asks_hub=config.model_facts == "hub")
    try:
        await serve_webhook(api, options, models.find, controller.find_infeasible)
    finally:
        models.close()


def platform_of(config: OperatorConfig) -> Platform:
    """What plans need to know of this operator and its cluster. Raises OSError."""
    host, _, port = config.control_plane.rpartition(":")
    return Platform(
        images={name: f"{config.image_prefix}{name}:{config.image_tag}" for name in IMAGES},
        image_pull_policy=config.image_pull_policy,
        image_pull_secrets=tuple(filter(None, config.image_pull_secrets.split(","))),
        control_plane=Endpoint(host, int(port)),
        control_plane_ca=Path(config.control_plane_ca).read_text() if config.control_plane_ca else "",
        cluster_domain=config.cluster_domain,
        prometheus=config.prometheus,
    )


if __name__ == "__main__":
    main()
