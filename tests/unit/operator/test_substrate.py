"""Parts of the local substrate that need no mesh: ports, run directory, probes, the machine's limits."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import stat
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.gguf import GgufError
from shoal.operator.api import ModelFacts, parse_manifest
from shoal.operator.envoy import Endpoint
from shoal.operator.planner import Readiness, ReadinessKind
from shoal.operator.planner.model_uri import source_uri
from shoal.operator.substrate import MeshError, PortInUse
from shoal.operator.substrate.machine import observe_machine, raise_file_limit
from shoal.operator.substrate.membership import Membership
from shoal.operator.substrate.model_facts import read_model_facts
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.substrate.probes import http_get, probe
from shoal.operator.substrate.process import describe_exit
from shoal.operator.substrate.run_dir import create_run_dir, write_files


def bind(port: int, *, reuse: bool) -> None:
    with socket.socket() as probing:
        if reuse:
            probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probing.bind(("127.0.0.1", port))
        probing.listen()


def test_reserved_port_is_kept_from_others_but_not_from_ours() -> None:
    with PortReservations() as ports:
        port = ports.reserve("a")
        assert ports.by_name == {"a": port}
        with pytest.raises(OSError, match="in use"):
            bind(port, reuse=False)
        bind(port, reuse=True)
        with PortReservations() as others, pytest.raises(PortInUse):
            others.reserve("a", port)
    bind(port, reuse=False)


def test_ports_differ_and_lie_outside_the_kernels_own_range() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with PortReservations() as ports:
        numbers = [ports.reserve(str(index)) for index in range(50)]
    assert len(set(numbers)) == 50
    assert max(numbers) < max(lowest, 32_768)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may bind every port")
def test_privileged_port_says_what_to_do() -> None:
    with PortReservations() as ports, pytest.raises(MeshError, match=r"spec\.gateway\.port above 1023"):
        ports.reserve("edge", 80)


def test_run_dir_is_private_and_short_enough_for_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = create_run_dir()
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    other = create_run_dir()
    assert len(f"{other}/admin.sock") < 108
    other.rmdir()


def test_membership_writes_only_changes(tmp_path: Path) -> None:
    write_files(tmp_path, {"xds/eds-worker.json": ""})
    file = tmp_path / "xds" / "eds-worker.json"
    membership = Membership(tmp_path)
    serves = {"worker": Endpoint("127.0.0.1", 7)}
    membership.leave(serves)
    assert file.read_text() == ""
    membership.join(serves)
    before = file.stat().st_ino
    assert '"port_value": 7' in file.read_text()
    membership.join(serves)
    assert file.stat().st_ino == before
    membership.leave(serves)
    assert '"lb_endpoints": []' in file.read_text()


async def answering(answer: bytes) -> tuple[asyncio.Server, str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", (200, b"ok")),
        (b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", (503, b"abc")),
    ],
)
async def test_http_get(answer: bytes, expected: tuple[int, bytes]) -> None:
    server, target = await answering(answer)
    async with server:
        assert await http_get(target, "/", 5.0) == expected


@pytest.mark.parametrize("answer", [b"", b"hello", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"])
async def test_probe_survives_any_answer(answer: bytes) -> None:
    server, target = await answering(answer)
    async with server:
        result = await probe(Readiness(kind=ReadinessKind.HTTP, target=target), 5.0)
    assert not result.ready
    assert result.detail


@pytest.mark.parametrize("kind", [ReadinessKind.HTTP, ReadinessKind.GRPC_HEALTH])
async def test_probe_of_nobody(kind: ReadinessKind) -> None:
    with PortReservations() as ports:
        result = await probe(Readiness(kind=kind, target=f"127.0.0.1:{ports.reserve('a')}"), 5.0)
    assert (result.ready, result.answered) == (False, False)


def test_machine_respects_the_containers_limits(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    machine = observe_machine(tmp_path)
    assert (machine.num_cores, machine.memory_bytes) == (1, 1 << 20)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert observe_machine(tmp_path).memory_bytes > 1 << 20


@pytest.mark.parametrize(
    ("files", "shown", "gpus"),
    [
        ((), None, ()),
        (("null", "nvidiactl", "nvidia-uvm"), None, ()),
        (("nvidia0", "nvidia1", "nvidia10", "nvidiactl"), None, ("0", "1", "2")),
        (("nvidia3",), None, ("0",)),
        (("dxg",), None, ("0",)),
        (("nvidia0", "nvidia1"), "1", ("1",)),
        (("nvidia0", "nvidia1"), "GPU-ab, 0", ("GPU-ab", "0")),
        (("nvidia0", "nvidia1"), "1,-1,0", ("1",)),
        (("nvidia0",), "", ()),
        ((), "0", ()),
    ],
)
def test_gpus_are_those_that_cuda_would_show(
    tmp_path: Path, files: tuple[str, ...], shown: str | None, gpus: tuple[str, ...]
) -> None:
    for name in files:
        (tmp_path / name).touch()
    environ = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    assert observe_machine(devices=tmp_path, environ=environ).gpus == gpus


def gguf(entries: list[tuple[str, int, bytes]], version: int = 3) -> bytes:
    body = b"".join(
        struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + v for key, kind, v in entries
    )
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(entries)) + body


ARCHITECTURE = [
    ("general.architecture", 8, struct.pack("<Q", 5) + b"llama"),
    ("llama.block_count", 4, struct.pack("<I", 30)),
    ("llama.context_length", 4, struct.pack("<I", 2048)),
    ("llama.embedding_length", 4, struct.pack("<I", 576)),
    ("llama.attention.head_count", 4, struct.pack("<I", 9)),
    ("llama.attention.head_count_kv", 4, struct.pack("<I", 3)),
]
FACTS = ModelFacts(num_layers=30, num_kv_heads=3, head_size=64, max_position=2048, num_attention_heads=9)


def test_facts_of_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tags = struct.pack("<IQQ", 8, 1, 4) + b"chat"
    path.write_bytes(gguf([("general.tags", 9, tags), *ARCHITECTURE]))
    assert read_model_facts(path) == FACTS


def test_facts_of_a_folder(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    assert read_model_facts(tmp_path) == FACTS
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": config | {"max_position_embeddings": 2048, "n_routed_experts": 64}})
    )
    assert read_model_facts(tmp_path) == replace(FACTS, num_experts=64)
    compressed = config | {"max_position_embeddings": 2048, "kv_lora_rank": 512}
    (tmp_path / "config.json").write_text(json.dumps(compressed))
    assert read_model_facts(tmp_path) is None, "its KV is not as large as its heads say"


def test_parameters_are_counted_by_the_size_of_files(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    (tmp_path / "model.safetensors").write_bytes(bytes(2000))
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 2048, "torch_dtype": "bfloat16"})
    )
    facts = read_model_facts(tmp_path)
    assert facts == replace(FACTS, num_parameters=1000)
    assert facts.weights_in_memory("float32", "auto") == 4000
    assert facts.weights_in_memory("auto", "fp8") == 1000


@pytest.mark.parametrize(
    "content",
    [
        gguf(ARCHITECTURE[:3]),
        gguf([*ARCHITECTURE[1:], ("general.architecture", 4, struct.pack("<I", 7))]),
        gguf([ARCHITECTURE[0], ("llama.block_count", 4, struct.pack("<I", 0)), *ARCHITECTURE[2:]]),
        gguf([*ARCHITECTURE[:-1], ("llama.attention.head_count_kv", 9, struct.pack("<IQII", 4, 2, 3, 3))]),
    ],
)
def test_odd_files_have_no_facts(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert read_model_facts(path) is None
    assert read_model_facts(tmp_path) is None
    assert read_model_facts(tmp_path / "none") is None
    (tmp_path / "other").write_bytes(b"PK" * 50)
    assert read_model_facts(tmp_path / "other") is None


@pytest.mark.parametrize("name", ["m.gguf", "model"])
@pytest.mark.parametrize(
    "content",
    [
        b"GGUF",
        gguf(ARCHITECTURE, version=1),
        gguf(ARCHITECTURE)[:-4],
        gguf([("general.architecture", 8, struct.pack("<Q", 1 << 60))]),
        gguf([("general.tags", 9, struct.pack("<IQ", 8, 1 << 60)), *ARCHITECTURE]),
        gguf([("general.tags", 99, b""), *ARCHITECTURE]),
    ],
)
def test_a_damaged_gguf_file_is_refused(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(GgufError, match=str(path)):
        read_model_facts(path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_is_gguf_by_name_alone_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=r"m\.gguf"):
        read_model_facts(path)


def test_exit_is_described() -> None:
    assert [describe_exit(code) for code in (0, 3, -9, -999)] == [
        "exit code 0",
        "exit code 3",
        "killed by SIGKILL",
        "killed by signal 999",
    ]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://org/model", "hf://org/model@v1"),
        ("hf://org/model/a.gguf", "hf://org/model@v1/a.gguf"),
        ("hf://m", "hf://m@v1"),
    ],
)
def test_revision_goes_into_the_uri(uri: str, expected: str) -> None:
    text = f"""
apiVersion: shoal.dev/v1alpha1
kind: InferenceService
metadata: {{name: a}}
spec: {{model: {{name: a, uri: "{uri}", revision: v1}}}}
"""
    assert source_uri(parse_manifest(text, "a").spec.model) == expected


def test_the_limit_of_open_files_is_raised_as_far_as_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        raised = raise_file_limit()
        assert raised == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raised == (1 << 16 if hard == resource.RLIM_INFINITY else min(1 << 16, hard))
        assert raise_file_limit() == raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
