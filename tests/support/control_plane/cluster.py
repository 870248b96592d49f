"""A Kubernetes control plane on this machine: etcd, the API server, its controllers, a scheduler, and kwok, which says
of pods that they run. Everything listens on 127.0.0.1 and ends with the process that started it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from shoal.operator.substrate import guardian
from shoal.operator.substrate.ports import PortReservations
from support.control_plane.certificates import write_certificates
from support.control_plane.stages import render_stages
from support.eventually import wait_until

HOST = "127.0.0.1"
_START_TIMEOUT_S = 90.0
_END_TIMEOUT_S = 10.0
# Node leases and the garbage collector's resyncs at the pace of tests.
_CONTROLLERS = ("*", "-nodelifecycle", "-ttl", "-bootstrapsigner", "-tokencleaner", "-node-ipam-controller")


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A running control plane."""

    folder: Path
    """Logs, audit log and data; gone with the control plane."""
    url: str
    token: str
    """Of an administrator."""
    kubeconfig: Path
    """For that administrator."""
    programs: Mapping[str, Path]
    processes: Processes
    restarts: list[tuple[datetime, datetime]] = field(default_factory=list)
    """Of the API server, from its end until it is ready: before that it may know no roles yet, and refuse everybody."""

    @property
    def audit_log(self) -> Path:
        """One JSON line for each request that the API server finished."""
        return self.folder / "audit.log"

    def restart_apiserver(self) -> None:
        """Ends the API server, with every watch and connection, and waits until it answers again."""
        stopped = datetime.now(UTC)
        self.processes.stop("kube-apiserver")
        self.processes.start_again("kube-apiserver")
        self.processes.wait("kube-apiserver", lambda: _is_ready(self), "the API server answers again")
        self.restarts.append((stopped, datetime.now(UTC)))

    def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json") -> Any:
        """One call as the administrator: the decoded answer. Raises urllib.error.HTTPError."""
        headers = {"authorization": f"Bearer {self.token}", "content-type": content_type, "accept": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data=body, headers=headers, method=method)
        with _opener(str(self.folder / "ca.crt")).open(request, timeout=30) as response:
            text = response.read()
        return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()

    @contextlib.contextmanager
    def fresh_namespace(self, level: str = "restricted", prefix: str = "test") -> Iterator[str]:
        """A namespace, gone with the context. level: of the pod security that it enforces."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        labels = {"pod-security.kubernetes.io/enforce": level}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.request("POST", "/api/v1/namespaces", json.dumps(body).encode())
        yield name
        self.request("DELETE", f"/api/v1/namespaces/{name}")

    def kubeconfig_of(self, namespace: str, account: str, path: Path) -> Path:
        """Writes a kubeconfig with a token of a ServiceAccount; its path."""
        url = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        token = self.request("POST", url, json.dumps(body).encode())["status"]["token"]
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"] = [{"name": "admin", "user": {"token": token}}]
        path.write_text(yaml.safe_dump(config))
        return path

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """What kubectl prints. Raises CalledProcessError with its errors."""
        command = [str(self.programs["kubectl"]), "--kubeconfig", str(self.kubeconfig), *arguments]
        environ = {"HOME": str(self.folder), "PATH": os.environ["PATH"]}
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, env=environ)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout


@contextlib.contextmanager
def running_control_plane(
    programs: Mapping[str, Path], *, definitions: Sequence[Mapping[str, Any]] = (), num_nodes: int = 2
) -> Iterator[ControlPlane]:
    """Starts one and yields it once pods can be made.

    num_nodes: made-up ones with GPUs, where pods will seem to run; without any there is no kwok either.
    definitions: CustomResourceDefinitions to serve. The garbage collector looks for later ones twice a minute only.
    """
    folder = Path(tempfile.mkdtemp(prefix="shoal-control-plane-"))
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(Processes(folder))
        ports = stack.enter_context(PortReservations())
        write_certificates(folder)
        plane = _configure(folder, programs, ports.reserve("apiserver"), processes)
        etcd, peers = f"http://{HOST}:{ports.reserve('etcd')}", f"http://{HOST}:{ports.reserve('etcd peers')}"
        processes.start("etcd", [str(programs["etcd"]), *_etcd_flags(folder, etcd, peers)])
        processes.start("kube-apiserver", [str(programs["kube-apiserver"]), *_apiserver_flags(plane, etcd)])
        processes.wait("kube-apiserver", lambda: _is_ready(plane), "the API server answers")
        for definition in definitions:
            plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(definition))
            what = f"{definition['metadata']['name']} is served"
            processes.wait("kube-apiserver", functools.partial(_is_served, plane, definition["spec"]), what)
        kubeconfig = f"--kubeconfig={plane.kubeconfig}"
        manager = [
            kubeconfig,
            "--leader-elect=false",
            "--secure-port=0",
            f"--controllers={','.join(_CONTROLLERS)}",
            "--use-service-account-credentials=false",
            f"--service-account-private-key-file={folder / 'accounts.key'}",
            f"--root-ca-file={folder / 'ca.crt'}",
        ]
        processes.start("kube-controller-manager", [str(programs["kube-controller-manager"]), *manager])
        scheduler = [kubeconfig, "--leader-elect=false", "--secure-port=0"]
        processes.start("kube-scheduler", [str(programs["kube-scheduler"]), *scheduler])
        if num_nodes:
            (folder / "stages.yaml").write_text(render_stages())
            kwok = [kubeconfig, "--manage-all-nodes=true", f"--config={folder / 'stages.yaml'}", "--cidr=10.0.0.0/16"]
            processes.start("kwok", [str(programs["kwok"]), *kwok])
        for index in range(num_nodes):
            plane.request("POST", "/api/v1/nodes", yaml.safe_dump(_node(index)).encode(), "application/yaml")
        processes.wait("kube-controller-manager", lambda: _has_service_account(plane), "service accounts are made")
        yield plane


class Processes:
    """Started programs, ended in reverse order; by a guardian, should this process be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}

    def __enter__(self) -> Processes:
        marker = f"SHOAL_RUN_ID={secrets.token_hex(8)}"
        self.marker = dict([marker.split("=")])
        """In the environment of whatever must not outlive this: the guardian sees to it."""
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(self._folder), **self.marker}
        command = [sys.executable, "-I", "-S", guardian.__file__, str(self._folder), marker]
        self._guardian = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env={})
        return self

    def __exit__(self, *exc: object) -> None:
        for name in reversed(self._running):
            self.stop(name)
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait(_END_TIMEOUT_S * 2)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Runs a program in a process group of its own, its output in `NAME.log`."""
        self._commands[name] = command
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ, process_group=0
            )
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(f"+{self._running[name].pid}\n".encode())
        self._guardian.stdin.flush()

    def start_again(self, name: str) -> None:
        """With the same command."""
        self.start(name, self._commands[name])

    def stop(self, name: str) -> None:
        """Returns once it has ended."""
        process = self._running[name]
        process.terminate()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait(self, name: str, condition: Any, what: str) -> None:
        """Returns once `condition` holds. Raises AssertionError with the end of the log of `name` otherwise."""
        try:
            wait_until(lambda: self._has_ended(name) or condition(), what, _START_TIMEOUT_S)
            assert not self._has_ended(name), f"{name} ended"
        except AssertionError as error:
            log = (self._folder / f"{name}.log").read_text(errors="replace")
            raise AssertionError(f"{error}; {name} said:\n{log[-3000:]}") from error

    def _has_ended(self, name: str) -> bool:
        return self._running[name].poll() is not None


@functools.lru_cache(maxsize=8)
def _opener(authority: str) -> urllib.request.OpenerDirector:
    """Reading the authority's certificate takes longer than a call."""
    context = ssl.create_default_context(cafile=authority)
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


def _configure(folder: Path, programs: Mapping[str, Path], port: int, processes: Processes) -> ControlPlane:
    url, token = f"https://{HOST}:{port}", secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(folder / "ca.crt")}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    path = folder / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(kubeconfig))
    audit = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [{"level": "Metadata"}],
    }
    (folder / "audit.yaml").write_text(yaml.safe_dump(audit))
    return ControlPlane(folder, url, token, path, programs, processes)


def _etcd_flags(folder: Path, client_url: str, peer_url: str) -> list[str]:
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
        "--unsafe-no-fsync=true",
        "--log-level=warn",
    ]


def _apiserver_flags(plane: ControlPlane, etcd: str) -> list[str]:
    folder = plane.folder
    return [
        f"--etcd-servers={etcd}",
        f"--bind-address={HOST}",
        f"--advertise-address={HOST}",
        f"--secure-port={plane.url.rpartition(':')[2]}",
        f"--tls-cert-file={folder / 'apiserver.crt'}",
        f"--tls-private-key-file={folder / 'apiserver.key'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        # Nobody is there who would take the taint of new nodes away.
        "--disable-admission-plugins=TaintNodesByCondition",
        "--endpoint-reconciler-type=none",  # it refuses loopback addresses
        "--authorization-mode=RBAC",
        "--anonymous-auth=false",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={folder / 'accounts.key'}",
        f"--service-account-key-file={folder / 'accounts.pub'}",
        f"--audit-policy-file={folder / 'audit.yaml'}",
        f"--audit-log-path={plane.audit_log}",
    ]


def _node(index: int) -> dict[str, Any]:
    """A node that only kwok keeps alive, with room for large models."""
    resources = {"cpu": "64", "memory": "512Gi", "pods": "250", "nvidia.com/gpu": "8", "ephemeral-storage": "2Ti"}
    name = f"node-{index}"
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": f"z{index}"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "status": {"capacity": resources, "allocatable": resources},
    }


def _is_ready(plane: ControlPlane) -> bool:
    try:
        return bool(plane.request("GET", "/readyz") == "ok")
    except OSError:
        return False


def _is_served(plane: ControlPlane, spec: Mapping[str, Any]) -> bool:
    try:
        plane.request("GET", f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}")
    except urllib.error.HTTPError:
        return False
    return True


def _has_service_account(plane: ControlPlane) -> bool:
    try:
        plane.request("GET", "/api/v1/namespaces/default/serviceaccounts/default")
    except urllib.error.HTTPError:
        return False
    return True
