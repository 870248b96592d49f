"""`shoal status`: how InferenceServices on a cluster are."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.table import Table

from shoal.client.cli.cluster import ask_cluster, cluster_options, namespace_of
from shoal.client.cli.failures import CommandFailed, require_operator
from shoal.client.cli.session import Session, debug_option
from shoal.client.cli.tables import add_columns, print_table

_ROLES = (
    ("workers", "workers"),
    ("prefill", "prefill workers"),
    ("decode", "decode workers"),
    ("gateways", "gateways"),
    ("tokenizers", "tokenizers"),
    ("kvStores", "KV stores"),
    ("loraRegistries", "LoRA registries"),
)
_STYLES = {"Ready": "green", "Updating": "cyan", "Degraded": "yellow", "Failed": "bold red"}
_NUM_EVENTS = 8
_Object = dict[str, Any]


@click.command("status")
@click.argument("name", required=False)
@cluster_options
@debug_option
@click.pass_obj
def command(
    session: Session,
    name: str | None,
    kubeconfig: Path | None,
    namespace: str | None,
    all_namespaces: bool,
    output: str,
) -> None:
    """Show how the InferenceService NAME on a cluster is, or list all of them.

    Phase, conditions, roles, endpoints and the last Events on one screen; of several services one line each.
    """
    require_operator()
    where = namespace_of(kubeconfig, namespace, all_namespaces)
    services, events = ask_cluster(kubeconfig, lambda api: _read(api, where, name))
    if name is not None and not services:
        raise CommandFailed(f"there is no InferenceService {name} in {where or 'any namespace'}")
    if output == "json":
        shown = [{"service": service, "events": events.get(service["metadata"]["uid"], [])} for service in services]
        click.echo(msgspec.json.encode(shown[0] if name is not None and len(shown) == 1 else shown))
    elif name is None:
        _list(session, services, with_namespace=where is None)
    else:
        for service in services:
            _show(session, service, events.get(service["metadata"]["uid"], []))


async def _read(api: Any, namespace: str | None, name: str | None) -> tuple[list[_Object], dict[str, list[_Object]]]:
    """The services by name, and of each (by uid) its Events, oldest first."""
    from shoal.operator.diagnosis.collecting import when
    from shoal.operator.planner.kubernetes.plan import Kind
    from shoal.operator.reconcile.api_client import ApiError
    from shoal.operator.reconcile.reconciler import SERVICE_KIND

    try:
        found = await api.list(SERVICE_KIND, namespace)
    except ApiError as error:
        if error.code == 404:
            raise CommandFailed(
                "the cluster knows no InferenceServices; `shoal doctor` says what is missing"
            ) from error
        raise
    services = [service for service in found if name in (None, service["metadata"]["name"])]
    by_uid: dict[str, list[_Object]] = {service["metadata"]["uid"]: [] for service in services}
    if name is not None:
        for where in {service["metadata"]["namespace"] for service in services}:
            for event in await api.list(Kind("v1", "Event", "events"), where):
                by_uid.get(event["involvedObject"].get("uid", ""), []).append(event)
        for events in by_uid.values():
            events.sort(key=when)
    return services, by_uid


def _list(session: Session, services: Sequence[_Object], *, with_namespace: bool) -> None:
    if not services:
        session.out.print("there are no InferenceServices")
        return
    table = Table(box=None, pad_edge=False)
    where = ["namespace"] if with_namespace else []
    add_columns(table, *where, "name", "model", "phase", "workers", "age", "message")
    for service in services:
        metadata, status = service["metadata"], service.get("status", {})
        phase = status.get("phase", "Unseen")
        table.add_row(
            *([metadata["namespace"]] if with_namespace else []),
            metadata["name"],
            service["spec"]["model"]["name"],
            f"[{_STYLES.get(phase, 'dim')}]{phase}[/]",
            status.get("workersReady", ""),
            _age(metadata["creationTimestamp"]),
            _plain(status.get("message", "")) or ("" if status else "no operator has looked at it yet"),
        )
    print_table(session.out, table)


def _show(session: Session, service: _Object, events: Sequence[_Object]) -> None:
    metadata, status = service["metadata"], service.get("status", {})
    phase = status.get("phase", "Unseen")
    title = f"{metadata['namespace']}/{metadata['name']} serves {service['spec']['model']['name']}: {phase}"
    session.out.print(title, style=_STYLES.get(phase, "bold"), markup=False, soft_wrap=True)
    if not status:
        session.out.print("no operator has looked at it yet; `shoal doctor` says why", soft_wrap=True)
    if status.get("message"):
        session.out.print(status["message"], markup=False, soft_wrap=True)
    behind = metadata["generation"] - status.get("observedGeneration", 0)
    if status and behind:
        changes = "1 change" if behind == 1 else f"{behind} changes"
        session.out.print(f"the operator has still to look at {changes} of the spec", style="yellow")
    for kind, address in (status.get("endpoints") or {}).items():
        session.out.print(f"{kind:<12}{address}", markup=False, soft_wrap=True)
    for field, words in _ROLES:
        if (role := status.get(field)) is not None:
            session.out.print(f"{words:<16}{role.get('ready', 0)} of {role.get('desired', 0)} ready", markup=False)
    _show_conditions(session, status.get("conditions") or [])
    _show_events(session, events)


def _show_conditions(session: Session, conditions: Sequence[_Object]) -> None:
    if not conditions:
        return
    table = Table(box=None, pad_edge=False)
    add_columns(table, "condition", "status", "since", "reason", "message")
    for found in conditions:
        is_good = found["status"] == ("False" if found["type"] == "Degraded" else "True")
        style = "green" if is_good else "dim" if found["status"] == "Unknown" else "yellow"
        since = _age(found["lastTransitionTime"])
        state = f"[{style}]{found['status']}[/]"
        table.add_row(found["type"], state, since, found["reason"], _plain(found["message"]))
    session.out.print()
    print_table(session.out, table)


def _show_events(session: Session, events: Sequence[_Object]) -> None:
    if not events:
        return
    session.out.print()
    for event in events[-_NUM_EVENTS:]:
        line = f"{_age(event['lastTimestamp']):>6} ago  {event['type']:<8} {event['reason']}: {event['message']}"
        session.out.print(line, markup=False, soft_wrap=True, style="yellow" if event["type"] == "Warning" else None)


def _plain(text: str) -> str:
    """Brackets in messages are no markup."""
    return text.replace("[", r"\[")


def _age(text: str) -> str:
    seconds = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(text)).total_seconds()
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
