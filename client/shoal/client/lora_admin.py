"""What people and tools ask of a LoRA registry: to publish, name and list adapters, and for their files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from shoal.api.lora_registry.v1 import lora_registry_pb2 as pb
from shoal.api.lora_registry.v1 import lora_registry_pb2_grpc
from shoal.client.service_admin import ServiceAdmin, open_channel
from shoal.rpc.errors import Unavailable
from shoal.rpc.status import from_rpc_error, has_details

FILE_NAMES: Final[Mapping[int, str]] = {
    pb.FILE_CONFIG: "adapter_config.json",
    pb.FILE_WEIGHTS: "adapter_model.safetensors",
}


class NoAnswer(Unavailable):
    """Nobody is there, or somebody between ended the call."""


@dataclass(slots=True)
class Adapters:
    """Everything that a registry has."""

    names: list[pb.Name] = field(default_factory=list)
    versions: dict[str, pb.AdapterVersion] = field(default_factory=dict)
    """By digest."""
    problems: dict[str, str] = field(default_factory=dict)
    """Name -> why it is not what the registry's settings say."""
    used_bytes: int = 0
    max_bytes: int = 0


class LoraAdmin(ServiceAdmin):
    """A connection to one registry. Calls raise ShoalError."""

    def __init__(self, endpoint: str, *, timeout_s: float = 600.0) -> None:
        """Raises InvalidArgument. Does not connect."""
        super().__init__(open_channel(endpoint), timeout_s)
        self._stub: Any = lora_registry_pb2_grpc.LoraRegistryServiceStub(self._channel)

    def publish(self, name: str, uri: str, *, sha256: str = "", rank: int = 0, digest: str = "") -> pb.PublishResponse:
        """Has the registry fetch and check an adapter, and points the name to it."""
        request = pb.PublishRequest(name=name, uri=uri, sha256=sha256, rank=rank, digest=digest)
        with _typed():
            response: pb.PublishResponse = self._stub.Publish(request, timeout=self._timeout_s)
            return response

    def resolve(self, name: str, version: int = 0) -> pb.ResolveResponse:
        """What the name points to, or pointed to."""
        with _typed():
            response: pb.ResolveResponse = self._stub.Resolve(
                pb.ResolveRequest(name=name, version=version), timeout=self._timeout_s
            )
            return response

    def list(self) -> Adapters:
        """Everything."""
        found = Adapters()
        with _typed():
            for part in self._stub.List(pb.ListRequest(), timeout=self._timeout_s):
                found.names += part.names
                found.versions |= {version.digest: version for version in part.versions}
                found.problems |= {problem.name: problem.message for problem in part.problems}
                found.used_bytes, found.max_bytes = (
                    found.used_bytes or part.used_bytes,
                    found.max_bytes or part.max_bytes,
                )
        return found

    def remove(self, name: str) -> bool:
        """Whether it was there."""
        with _typed():
            response: pb.RemoveResponse = self._stub.Remove(pb.RemoveRequest(name=name), timeout=self._timeout_s)
            return response.removed

    def fetch(
        self, adapter: pb.AdapterVersion, folder: Path, progress: Callable[[int], None] = lambda num_bytes: None
    ) -> Path:
        """Both files into `folder`, which is made; goes on from what an attempt before has left there.

        A file appears under its name once its sha256 is right. progress: told of bytes that arrive, or are there.
        Raises ShoalError, OSError.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for facts in adapter.files:
            self._fetch(adapter.digest, facts, folder / FILE_NAMES[facts.file], progress)
        return folder

    def _fetch(self, digest: str, facts: pb.FileFacts, target: Path, progress: Callable[[int], None]) -> None:
        partial = target.with_name(f"{target.name}.{digest[:16]}.part")
        with partial.open("ab") as file:
            offset = file.tell()
            if offset > facts.num_bytes:
                file.truncate(0)
                offset = 0
            progress(offset)
            request = pb.FetchRequest(digest=digest, file=facts.file, offset=offset)
            with _typed():
                for part in self._stub.Fetch(request, timeout=self._timeout_s):
                    if part.offset != offset or offset + len(part.data) > facts.num_bytes:
                        raise Unavailable(f"{target.name}: the registry sent other bytes than it was asked for")
                    file.write(part.data)
                    offset += len(part.data)
                    progress(len(part.data))
            file.flush()
            os.fsync(file.fileno())
        with partial.open("rb") as file:
            right = hashlib.file_digest(file, "sha256").digest() == facts.sha256
        if not right:
            partial.unlink()
            raise Unavailable(f"{target.name}: other bytes than those of version {digest}; fetch it again")
        partial.replace(target)


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        known = from_rpc_error(error)
        if isinstance(known, Unavailable) and not has_details(error):
            raise NoAnswer(known.message) from error
        raise known from error
