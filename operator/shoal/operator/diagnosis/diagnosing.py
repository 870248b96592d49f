"""Facts to findings. Pure."""

from __future__ import annotations

from dataclasses import replace

from shoal.operator.diagnosis.cluster_checks import check_cluster
from shoal.operator.diagnosis.facts import Facts
from shoal.operator.diagnosis.findings import Finding, ok
from shoal.operator.diagnosis.pod_checks import check_pods
from shoal.operator.diagnosis.service_checks import check_service

_ORDER = ("problem", "warning", "unknown", "ok")


def diagnose(facts: Facts) -> list[Finding]:
    """Problems first, the likeliest cause first of all; what is fine comes last."""
    findings = list(check_cluster(facts))
    for service in facts.services:
        of_service = [*check_service(service, facts), *check_pods(service, facts)]
        if not any(finding.verdict in ("problem", "warning") for finding in of_service):
            of_service.append(ok("service", _sums_up(service.service)))
        findings += [replace(finding, service=service.name) for finding in of_service]
    return sorted(findings, key=lambda finding: (_ORDER.index(finding.verdict), -finding.likelihood))


def _sums_up(service: dict[str, object]) -> str:
    status = service.get("status")
    phase = status.get("phase", "not looked at yet") if isinstance(status, dict) else "not looked at yet"
    return f"{phase}; nothing is wrong that could be seen"
