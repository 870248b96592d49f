"""Reads a cluster. Nothing is changed; whatever may not be read is noted, and the rest is read all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

from shoal.operator.api.crd import CRD_NAME, GROUP, PLURAL
from shoal.operator.api.spec import API_VERSION, KIND
from shoal.operator.diagnosis.facts import Facts, Reading, ServiceFacts
from shoal.operator.planner.kubernetes import KINDS, OWNER_LABEL, Manifest
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient, ApiError, collection_path, object_path
from shoal.operator.reconcile.leadership import LEASE_NAME
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from shoal.operator.reconcile.rights import rules

GPU: Final = "nvidia.com/gpu"
OPERATOR_LABELS: Final = "app.kubernetes.io/name=shoal-operator"
_POD: Final = Kind("v1", "Pod", "pods")
_SLICE: Final = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
_EVENT: Final = Kind("v1", "Event", "events")
_CLAIM: Final = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
_LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
_NODE: Final = Kind("v1", "Node", "nodes")
_WEBHOOK: Final = Kind("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration",
                       "validatingwebhookconfigurations")  # fmt: skip
_DEFINITION_PATH: Final = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD_NAME}"
_MAX_LOGS: Final = 4
_LOG_LINES: Final = 12
_T = TypeVar("_T")


async def collect(
    api: ApiClient, namespace: str | None, name: str | None = None, operator_account: tuple[str, str] | None = None
) -> Facts:
    """namespace: None: all. name: of the InferenceService; None: all there are. operator_account: namespace and name
    of the operator's ServiceAccount, if it runs in no pod that says so."""
    server = str(api.configuration.host)
    try:
        version = str((await api.request("GET", "/version")).get("gitVersion", ""))
    except ApiError as error:
        return Facts(now_s=time.time(), server=server, unreachable=str(error))
    return await _Collector(api).collect(server, version, namespace, name, operator_account)


class _Collector:
    """One look."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._refused: dict[Reading, str] = {}

    async def collect(
        self, server: str, version: str, namespace: str | None, name: str | None, account: tuple[str, str] | None
    ) -> Facts:
        definition = await self._try("definition", self._definition(), None)
        leases, operators, webhooks, nodes, dns, found = await asyncio.gather(
            self._try("leases", self._leases(), []),
            self._try("operators", self._api.list(_POD, None, OPERATOR_LABELS), []),
            self._try("webhooks", self._api.list(_WEBHOOK, None), []),
            self._try("nodes", self._api.list(_NODE, None), []),
            self._try("dns", self._api.list(_SLICE, "kube-system", "k8s-app=kube-dns"), []),
            self._try("services", self._services(namespace, name), []),
        )
        if account is None and operators:
            account = operators[0]["metadata"]["namespace"], operators[0]["spec"].get("serviceAccountName", "default")
        missing: list[str] = []
        if account is not None:
            missing = await self._try("rights", self._missing_rights(account), [])
        gpu_pods: list[Manifest] = []
        if any(item["spec"].get("workers", {}).get("device") == "cuda" for item in found):
            gpu_pods = await self._try("nodes", self._gpu_pods(), [])
        admission = "" if definition is None else await self._admission(namespace or "default")
        services = await asyncio.gather(*map(self._service, found))
        return Facts(
            now_s=time.time(),
            server=server,
            version=version,
            definition=definition,
            leases=tuple(leases),
            operators=tuple(operators),
            webhooks=tuple(filter(_concerns_us, webhooks)),
            admission=admission,
            missing_rights=tuple(missing),
            nodes=tuple(nodes),
            gpu_pods=tuple(gpu_pods),
            dns_slices=tuple(dns),
            services=tuple(services),
            refused=self._refused,
        )

    async def _try(self, what: Reading, reading: Awaitable[_T], default: _T) -> _T:
        try:
            return await reading
        except ApiError as error:
            self._refused[what] = str(error)
            return default

    async def _definition(self) -> Manifest | None:
        try:
            return await self._api.request("GET", _DEFINITION_PATH)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def _services(self, namespace: str | None, name: str | None) -> list[Manifest]:
        try:
            found = await self._api.list(SERVICE_KIND, namespace)
        except ApiError as error:
            if error.code == 404:  # no definition
                return []
            raise
        return [item for item in found if name in (None, item["metadata"]["name"])]

    async def _leases(self) -> list[Manifest]:
        path = collection_path(_LEASE, None)
        answer = await self._api.request("GET", path, query={"fieldSelector": f"metadata.name={LEASE_NAME}"})
        return list(answer["items"])

    async def _admission(self, namespace: str) -> str:
        """Why a valid object is refused; nothing is stored."""
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "shoal-doctor", "namespace": namespace},
            "spec": {"model": {"name": "doctor", "uri": "hf://shoal/doctor"}},
        }
        try:
            await self._api.request("POST", collection_path(SERVICE_KIND, namespace), body, query={"dryRun": "All"})
        except ApiError as error:
            if error.code in (401, 403):
                self._refused["admission"] = str(error)
                return ""
            return str(error)
        return ""

    async def _missing_rights(self, account: tuple[str, str]) -> list[str]:
        """Asks the API server on behalf of the operator, which takes an administrator."""
        user = f"system:serviceaccount:{account[0]}:{account[1]}"
        asked = [
            (rule["apiGroups"][0], resource, verb)
            for rule in rules()
            for resource in rule["resources"]
            for verb in rule["verbs"]
        ]
        allowed = await asyncio.gather(*(self._may(user, *right) for right in asked))
        return [f"{verb} {resource}" for (_, resource, verb), may in zip(asked, allowed, strict=True) if not may]

    async def _may(self, user: str, group: str, resource: str, verb: str) -> bool:
        resource, _, subresource = resource.partition("/")
        attributes = {"group": group, "resource": resource, "subresource": subresource, "verb": verb}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": ["system:serviceaccounts"], "resourceAttributes": attributes},
        }
        answer = await self._api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        return bool(answer["status"]["allowed"])

    async def _gpu_pods(self) -> list[Manifest]:
        pods = await self._api.list(_POD, None)
        return [pod for pod in pods if gpus_of(pod) and pod.get("status", {}).get("phase") in ("Pending", "Running")]

    async def _service(self, service: Manifest) -> ServiceFacts:
        metadata = service["metadata"]
        namespace, ours = metadata["namespace"], f"{OWNER_LABEL}={metadata['name']}"
        objects, pods, slices, events, claim = await asyncio.gather(
            self._try("objects", self._objects(namespace, ours), []),
            self._try("pods", self._api.list(_POD, namespace, ours), []),
            self._try("slices", self._api.list(_SLICE, namespace, ours), []),
            self._try("events", self._api.list(_EVENT, namespace), []),
            self._try("claims", self._claim(service), None),
        )
        about = {item["metadata"]["uid"] for item in (service, *objects, *pods)}
        # Deployments have ReplicaSets between them and their pods, which carry no label of ours to be found by.
        deployments = {item["metadata"]["name"] for item in objects if item["kind"] == "Deployment"}
        events = [
            event
            for event in events
            if event["involvedObject"].get("uid") in about or _replica_set_of(event["involvedObject"]) in deployments
        ]
        return ServiceFacts(
            service={"apiVersion": API_VERSION, "kind": KIND, **service},
            objects=tuple(objects),
            pods=tuple(pods),
            slices=tuple(slices),
            events=tuple(sorted(events, key=when)),
            claim=claim,
            logs=await self._logs(pods),
        )

    async def _objects(self, namespace: str, ours: str) -> list[Manifest]:
        lists = await asyncio.gather(*(self._list_if_served(kind, namespace, ours) for kind in KINDS))
        return [item for found in lists for item in found]

    async def _list_if_served(self, kind: Kind, namespace: str, ours: str) -> list[Manifest]:
        """Some kinds are there on some clusters only."""
        try:
            return await self._api.list(kind, namespace, ours)
        except ApiError as error:
            if error.code == 404:
                return []
            raise

    async def _claim(self, service: Manifest) -> Manifest | None:
        name = service["spec"].get("model", {}).get("cacheClaim")
        return None if name is None else await self._api.get(_CLAIM, service["metadata"]["namespace"], name)

    async def _logs(self, pods: list[Manifest]) -> dict[tuple[str, str], str]:
        """Of containers that crashed: what the one before said last."""
        crashed = [
            (pod, status["name"])
            for pod in pods
            for status in pod.get("status", {}).get("containerStatuses", ())
            if status.get("restartCount") and not status.get("ready")
        ]
        logs: dict[tuple[str, str], str] = {}
        for pod, container in crashed[:_MAX_LOGS]:
            metadata = pod["metadata"]
            path = f"{object_path(_POD, metadata['namespace'], metadata['name'])}/log"
            query = {"container": container, "previous": "true", "tailLines": str(_LOG_LINES)}
            try:
                logs[metadata["name"], container] = await self._api.request_text(path, query)
            except ApiError as error:
                self._refused.setdefault("logs", str(error))
        return logs


def gpus_of(pod: Manifest) -> int:
    """How many a pod asks for."""
    total = 0
    for container in pod["spec"].get("containers", ()):
        total += int(container.get("resources", {}).get("limits", {}).get(GPU, 0))
    return total


def when(event: Manifest) -> str:
    """RFC 3339."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def _replica_set_of(about: Manifest) -> str | None:
    """The Deployment's name, by which Kubernetes names its ReplicaSets."""
    return str(about.get("name", "")).rpartition("-")[0] if about.get("kind") == "ReplicaSet" else None


def _concerns_us(configuration: Manifest) -> bool:
    return any(
        GROUP in rule.get("apiGroups", ()) and PLURAL in rule.get("resources", ())
        for webhook in configuration.get("webhooks", ())
        for rule in webhook.get("rules", ())
    )
