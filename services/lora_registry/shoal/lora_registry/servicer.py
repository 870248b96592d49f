"""LoraRegistryService: gRPC to store and publisher and back, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry import trace

from shoal.api.lora_registry.v1 import lora_registry_pb2 as pb
from shoal.api.lora_registry.v1 import lora_registry_pb2_grpc
from shoal.artifacts import ArtifactError, ArtifactNotFound, DigestMismatch, NoSpace, parse_adapter_source
from shoal.lora_registry.errors import AdapterRefused, Damaged, NoRoom, NotKept
from shoal.lora_registry.events import EventLog
from shoal.lora_registry.metrics import DAMAGED, FETCHED_BYTES, FETCHES, WATCHERS
from shoal.lora_registry.publishing import NAME, Publisher, Wanted
from shoal.lora_registry.settings_file import SettingsFollower
from shoal.lora_registry.store import AdapterStore
from shoal.lora_registry.store.reading import AdapterFile
from shoal.lora_registry.wire import FILE_NAMES, MESSAGE_FILES, to_event, to_name, to_version
from shoal.rpc.errors import InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, Unavailable

MAX_RANK: Final = 512
_PER_MESSAGE: Final = 256
_HEX: Final = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What callers may."""

    read_only: bool
    max_pending: int
    max_fetches: int


class LoraRegistryServicer(lora_registry_pb2_grpc.LoraRegistryServiceServicer):
    """The RPCs. Errors of the domain become statuses in the server's interceptor."""

    def __init__(
        self,
        store: AdapterStore,
        publisher: Publisher,
        events: EventLog,
        follower: SettingsFollower,
        readers: Executor,
        limits: Limits,
    ) -> None:
        """readers: threads that read files."""
        self._store = store
        self._publisher = publisher
        self._events = events
        self._follower = follower
        self._readers = readers
        self._limits = limits
        self._num_fetches = 0

    async def Publish(self, request: pb.PublishRequest, context: Any) -> pb.PublishResponse:  # noqa: N802
        """See the proto."""
        wanted = self._read_wanted(request)
        self._refuse_settings(wanted.name)
        if self._publisher.num_pending >= self._limits.max_pending:
            raise ResourceExhausted(f"{self._limits.max_pending} adapters are being published or wait", 5.0)
        with _translated(request.uri):
            published = await self._publisher.publish(wanted)
        return pb.PublishResponse(
            version=published.name.current, adapter=to_version(published.record), changed=published.changed
        )

    async def Resolve(self, request: pb.ResolveRequest, context: Any) -> pb.ResolveResponse:  # noqa: N802
        """See the proto."""
        found = self._store.resolve(request.name, request.version)
        if found is None:
            raise NotFound(self._explain_missing(request))
        version, record = found
        return pb.ResolveResponse(version=version, adapter=to_version(record))

    async def List(self, request: pb.ListRequest, context: Any) -> AsyncIterator[pb.ListResponse]:  # noqa: N802
        """See the proto."""
        problems = [pb.Problem(name=name, message=text) for name, text in sorted(self._follower.problems.items())]
        names, versions = self._store.contents()
        used_bytes = sum(record.num_bytes for record in versions)
        head = pb.ListResponse(problems=problems, used_bytes=used_bytes, max_bytes=self._store.limits.max_bytes)
        yield head
        for start in range(0, len(names), _PER_MESSAGE):
            yield pb.ListResponse(names=[to_name(record) for record in names[start : start + _PER_MESSAGE]])
        for start in range(0, len(versions), _PER_MESSAGE):
            yield pb.ListResponse(versions=[to_version(each) for each in versions[start : start + _PER_MESSAGE]])

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        """See the proto."""
        with WATCHERS.track_inprogress():
            async with contextlib.aclosing(self._events.follow(request.epoch, request.revision)) as batches:
                async for batch in batches:
                    yield pb.WatchResponse(
                        epoch=self._events.epoch,
                        revision=batch.revision,
                        snapshot=batch.is_snapshot,
                        events=[to_event(event) for event in batch.events],
                    )

    async def Fetch(self, request: pb.FetchRequest, context: Any) -> AsyncIterator[pb.FetchResponse]:  # noqa: N802
        """See the proto."""
        if request.file not in MESSAGE_FILES:
            raise InvalidArgument("file", f"{request.file}; give FILE_CONFIG or FILE_WEIGHTS")
        if self._num_fetches >= self._limits.max_fetches:
            raise ResourceExhausted(f"{self._limits.max_fetches} files are being sent, which is the most", 1.0)
        self._num_fetches += 1
        try:
            with FETCHES.track_inprogress(), self._open(request) as file:
                if request.offset > file.record.num_bytes:
                    raise InvalidArgument("offset", f"{request.offset}; the file has {file.record.num_bytes} bytes")
                async for part in self._send(file, request):
                    yield part
        except Damaged as error:
            raise await self._report(error, request.digest) from error
        finally:
            self._num_fetches -= 1

    async def Remove(self, request: pb.RemoveRequest, context: Any) -> pb.RemoveResponse:  # noqa: N802
        """See the proto."""
        self._refuse_settings(request.name)
        with _translated(request.name):
            return pb.RemoveResponse(removed=await self._publisher.remove(request.name))

    async def _send(self, file: AdapterFile, request: pb.FetchRequest) -> AsyncIterator[pb.FetchResponse]:
        loop, offset = asyncio.get_running_loop(), request.offset
        while chunk := await loop.run_in_executor(self._readers, file.read, offset):
            yield pb.FetchResponse(offset=offset, data=chunk)
            offset += len(chunk)
            FETCHED_BYTES.inc(len(chunk))

    @contextmanager
    def _open(self, request: pb.FetchRequest) -> Iterator[AdapterFile]:
        try:
            file = self._store.open(request.digest, FILE_NAMES[request.file])
        except NotKept as error:
            raise NotFound(f"no version {request.digest[:80]!r} is kept; resolve its name again") from error
        with file:
            yield file

    async def _report(self, error: Damaged, digest: str) -> Unavailable:
        DAMAGED.inc()
        names = await self._publisher.drop(digest)
        again = [name for name in names if self._follower.wants(name)]
        if again:
            self._follower.look_again()
        hint = f"; {', '.join(again)} is fetched again" if again else ""
        return Unavailable(f"version {digest} was damaged on disk and is gone{hint}", 5.0)

    def _read_wanted(self, request: pb.PublishRequest) -> Wanted:
        if not NAME.fullmatch(request.name):
            problem = "give 1 to 128 of A-Z, a-z, 0-9 and . _ : / -, starting with a letter or digit"
            raise InvalidArgument("name", f"{request.name[:160]!r}; {problem}")
        if request.rank > MAX_RANK:
            raise InvalidArgument("rank", f"{request.rank}; give 1 to {MAX_RANK}, or 0 for any")
        for field in ("sha256", "digest"):
            value = getattr(request, field)
            if value and (len(value) != 64 or not _HEX.issuperset(value)):
                raise InvalidArgument(field, f"{value[:80]!r}; give 64 hexadecimal digits, or leave it out")
        try:
            parse_adapter_source(request.uri, request.sha256 or None)
        except ArtifactError as error:
            raise InvalidArgument("uri", str(error)) from error
        return Wanted(
            name=request.name, uri=request.uri, sha256=request.sha256, rank=request.rank, digest=request.digest
        )

    def _refuse_settings(self, name: str) -> None:
        if self._limits.read_only:
            raise PermissionDenied("adapters of this registry come from its settings alone (--read-only)")
        record = self._store.name(name)
        if self._follower.wants(name) or (record is not None and record.is_set):
            raise PermissionDenied(f"{name!r} is one of the settings' adapters (--adapters-file); change it there")

    def _explain_missing(self, request: pb.ResolveRequest) -> str:
        record = self._store.name(request.name)
        if record is not None and request.version and record.current:
            kept = ", ".join(str(number) for number, _ in record.versions)
            return f"{request.name!r} has no version {request.version}; kept are {kept}"
        problem = self._follower.problems.get(request.name)
        if problem is not None:
            return f"{request.name[:160]!r} could not be published: {problem}"
        names = ", ".join(each.name for each in self._store.names()[:20]) or "none"
        return f"no adapter {request.name[:160]!r}; there are {names}"


@contextmanager
def _translated(source: str) -> Iterator[None]:
    span = trace.get_current_span()
    try:
        yield
    except AdapterRefused as error:
        span.set_attribute("shoal.lora.refused", str(error)[:256])
        raise InvalidArgument("uri", f"{source[:200]!r} is refused: {error}") from error
    except DigestMismatch as error:
        raise InvalidArgument("sha256", str(error)) from error
    except ArtifactNotFound as error:
        raise NotFound(str(error)) from error
    except (NoRoom, NoSpace) as error:
        raise ResourceExhausted(str(error), 60.0) from error
    except (ArtifactError, OSError) as error:
        raise Unavailable(str(error), 5.0) from error
