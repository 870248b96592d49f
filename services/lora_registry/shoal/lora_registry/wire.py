"""The domain as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from shoal.api.lora_registry.v1 import lora_registry_pb2 as pb
from shoal.lora_registry.adapters import CONFIG_FILE, WEIGHTS_FILE
from shoal.lora_registry.events import Event
from shoal.lora_registry.store import NameRecord, VersionRecord

FILE_NAMES: Final[Mapping[int, str]] = {pb.FILE_CONFIG: CONFIG_FILE, pb.FILE_WEIGHTS: WEIGHTS_FILE}
MESSAGE_FILES: Final = (pb.FILE_CONFIG, pb.FILE_WEIGHTS)


def to_version(record: VersionRecord) -> pb.AdapterVersion:
    """A version."""
    adapter = record.adapter
    return pb.AdapterVersion(
        digest=adapter.digest,
        rank=adapter.rank,
        alpha=adapter.alpha,
        scaling=adapter.scaling,
        target_modules=adapter.target_modules,
        dtype=adapter.dtype,
        num_parameters=adapter.num_parameters,
        num_bytes=record.num_bytes,
        files=[_facts(record, file) for file in MESSAGE_FILES],
        base_model=pb.BaseModel(
            name=adapter.base_model, min_num_layers=adapter.min_num_layers, hidden_size=adapter.hidden_size
        ),
        published_unix_ms=record.published_unix_ms,
        uri=record.uri,
    )


def _facts(record: VersionRecord, file: pb.File.ValueType) -> pb.FileFacts:
    found = record.files[FILE_NAMES[file]]
    return pb.FileFacts(file=file, num_bytes=found.num_bytes, sha256=found.sha256)


def to_name(record: NameRecord) -> pb.Name:
    """A name that points somewhere."""
    former = [
        pb.Former(version=version, digest=digest)
        for version, digest in reversed(record.versions)
        if version != record.current
    ]
    return pb.Name(name=record.name, version=record.current, digest=record.digest or "", former=former)


def to_event(event: Event) -> pb.Event:
    """A change of a name."""
    adapter = None if event.record is None else to_version(event.record)
    return pb.Event(name=event.name, version=event.version, adapter=adapter)
