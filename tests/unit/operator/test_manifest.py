"""Manifests: what is accepted, and what people are told when it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.operator.api import (
    Machine,
    ManifestError,
    ModelFacts,
    WorkerSizes,
    find_contradictions,
    format_bytes,
    load_manifest,
    parse_manifest,
    parse_quantity,
    worker_sizes,
)
from shoal.operator.api.reading import MAX_MANIFEST_BYTES

EXAMPLES = Path(__file__).parents[3] / "examples"
HEAD = """
apiVersion: shoal.dev/v1alpha1
kind: InferenceService
metadata: {name: smol}
"""
MINIMAL = HEAD + "spec: {model: {name: smol, uri: /m.gguf}}\n"
SMOLLM2 = ModelFacts(num_layers=30, num_kv_heads=3, head_size=64, max_position=2048)


def problems_of(text: str, machine: Machine | None = None) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, "m.yaml", machine)
    return [str(problem) for problem in caught.value.problems]


def spec(**sections: str) -> str:
    lines = "".join(f"\n  {name}: {value}" for name, value in sections.items())
    return f"{HEAD}spec:\n  model: {{name: smol, uri: /m.gguf}}{lines}\n"


def test_minimal_manifest_gets_defaults() -> None:
    service = parse_manifest(MINIMAL, "m.yaml")
    assert service.metadata.name == "smol"
    assert service.spec.workers.replicas == 1
    assert service.spec.workers.threads is None
    assert service.spec.gateway.port == 0
    assert service.spec.gateway.auth is None
    assert worker_sizes(service.spec) == WorkerSizes(16, 16, 512, "512Mi", None)
    assert worker_sizes(service.spec).kv_cache_memory_bytes == 512 << 20


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    assert load_manifest(path).spec.model.name


def test_manifest_is_frozen() -> None:
    service = parse_manifest(MINIMAL, "m.yaml")
    with pytest.raises(AttributeError):
        service.spec.workers.replicas = 3  # type: ignore[misc]  # that is the point


def test_every_problem_is_listed_in_the_order_of_the_file() -> None:
    text = f"""{HEAD}
spec:
  model:
    name: x
    dtype: fp8
    max_model_len: 4
  worker: {{}}
  workers:
    replicas: 0
    threads:
    maxNumSeqs: "3"
  kvCache: 5
  gateway:
    port: 99999
"""
    assert problems_of(text) == [
        "line 7: spec.model.uri: is required: a URI (file://, hf://, pypi://) or a path that starts with / or ./",
        "line 9: spec.model.dtype: 'fp8' is not allowed; give one of auto, bfloat16, float32",
        "line 10: spec.model.max_model_len: unknown field; did you mean 'maxModelLen'?",
        "line 11: spec.worker: unknown field; did you mean 'workers'?",
        "line 13: spec.workers.replicas: 0 is not allowed; give an integer from 1 to 64",
        "line 15: spec.workers.maxNumSeqs: '3' is not allowed; give an integer from 1 to 4096",
        "line 16: spec.kvCache: 5 is not a mapping of fields",
        "line 18: spec.gateway.port: 99999 is not allowed; give an integer from 0 to 65535",
    ]


def test_error_names_file_and_count() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(spec(workers="{replicas: 0, threads: 0}"), "my.yaml")
    assert str(caught.value).startswith("my.yaml: 2 problems\n  line 7: spec.workers.replicas: 0 is")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file is empty"),
        (MINIMAL + "---\n" + MINIMAL, "holds 2 documents; give one InferenceService a file"),
        ("- a\n- b", "line 1: holds list instead of an InferenceService with apiVersion, kind, metadata and spec"),
        ("hello", "line 1: holds str instead of an InferenceService with apiVersion, kind, metadata and spec"),
        ("a: [1", "line 1: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: !!python/object:os.system x", "line 1: a: cannot be read: could not determine a constructor"),
        ("a: \x07", "not YAML: unacceptable character #x0007"),
        ("kind: Deployment\napiVersion: apps/v1", "line 1: kind: 'Deployment' is not served here; give InferenceS"),
        (MINIMAL.replace("v1alpha1", "v9"), "line 2: apiVersion: 'shoal.dev/v9' is not known; give shoal.dev/v1alp"),
        ("a: 1\nb: 2\na: 3", "line 3: a: given twice, first on line 1"),
        ("a: &x {b: 1}\nc: *x", "line 1: c: is a YAML alias; write the value out"),
        ("? {a: 1}\n: 2", "line 1: a key must be a word"),
        ("[" * 40 + "]" * 40, "nested deeper than 32 levels"),
        ("[" * 50_000, "nested deeper than 32 levels"),
    ],
)
def test_what_is_no_manifest(text: str, problem: str) -> None:
    assert problem in problems_of(text)[0]


def test_duplicate_keys_deep_down_are_all_found() -> None:
    text = MINIMAL.replace("uri: /m.gguf", "uri: /m.gguf, uri: /n.gguf, name: other")
    assert problems_of(text) == [
        "line 5: spec.model.uri: given twice, first on line 5",
        "line 5: spec.model.name: given twice, first on line 5",
    ]


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"workers": "{maxNumSeqs: 600}"}, "spec.workers.maxNumSeqs: 600 is more than spec.workers.maxNumBatchedT"),
        ({"kvCache": "{memory: 0Mi}"}, "spec.kvCache.memory: '0Mi' is nothing"),
        ({"kvCache": "{memory: 512MB}"}, "'512MB' is not allowed; give a quantity such as 512Mi, 2Gi or 1.5G or an"),
        ({"kvCache": "{blockSize: 17}"}, "spec.kvCache.blockSize: 17 is not allowed; give one of 8, 16, 32, 64, 128"),
        ({"flowControl": "{maxQueueSeconds: 0}"}, "maxQueueSeconds: 0 is not allowed; give a number from 0.1 to 86400"),
        ({"flowControl": "{maxQueueAge: 3}"}, "spec.flowControl.maxQueueAge: unknown field; did you mean 'maxQueueS"),
        ({"flowControl": "{tenants: {a: 1}}"}, "spec.flowControl.tenants: {'a': 1} is not a list; give a mapping with"),
        ({"flowControl": "{tenants: [{weight: 2}]}"}, "spec.flowControl.tenants[0].name: is required: a tenant of the"),
        (
            {"flowControl": "{tenants: [{name: a}, {name: b, weight: 0}]}"},
            "spec.flowControl.tenants[1].weight: 0 is not allowed; give a number from 0.01 to 1000",
        ),
        (
            {"flowControl": "{tenants: [{name: a}, {name: a}]}", "gateway": "{auth: {apiKeysFile: /k}}"},
            "spec.flowControl.tenants[1].name: 'a' is given twice; give each tenant once",
        ),
        ({"flowControl": "{tenants: [{name: a}]}"}, "spec.flowControl.tenants: tenants are told apart by their API"),
        (
            {"flowControl": "{maxQueuedRequests: 10, maxQueuedRequestsPerTenant: 11}"},
            "spec.flowControl.maxQueuedRequestsPerTenant: 11 is more than spec.flowControl.maxQueuedRequests = 10",
        ),
        ({"workers": "{device: tpu}"}, "spec.workers.device: 'tpu' is not allowed; give one of cpu, cuda, simulated"),
        (
            {"workers": "{device: cuda, gpuMemoryUtilization: 1.5}"},
            "spec.workers.gpuMemoryUtilization: 1.5 is not allowed; give a number above 0, at most 1",
        ),
        (
            {"workers": "{gpuMemoryUtilization: 0.5}"},
            "spec.workers.gpuMemoryUtilization: 0.5 has no meaning for spec.workers.device = cpu; leave it out, and",
        ),
        (
            {"workers": "{device: cuda}", "kvCache": "{memory: 8Gi}"},
            "spec.kvCache.memory: '8Gi' has no meaning for spec.workers.device = cuda, where KV blocks get what",
        ),
        (
            {"workers": "{device: cuda}", "kvCache": "{blockSize: 8}"},
            "spec.kvCache.blockSize: 8 is too small for a GPU; give 16 or more (64 is the default)",
        ),
        (
            {"kvCache": "{ssd: 1Gi, ssdFolder: /kv}"},
            "spec.kvCache.ssd: needs memory in front of it; give spec.kvCache.c",
        ),
        ({"kvCache": "{cpu: 1Gi, ssd: 1Gi}"}, "spec.kvCache.ssd: needs a place; give spec.kvCache.ssdFolder, a folder"),
        ({"kvCache": "{cpu: 1Gi, ssdFolder: /kv}"}, "spec.kvCache.ssdFolder: has no meaning without spec.kvCache.ssd"),
        ({"kvCache": "{cpu: 1Mi}"}, "spec.kvCache.cpu: '1Mi' is too small for a KV store; give 16.0Mi or more"),
        (
            {"workers": "{device: simulated}", "kvCache": "{cpu: 1Gi}"},
            "spec.kvCache.cpu: has no meaning for spec.workers.device = simulated, which has no KV to store; leave it",
        ),
        ({"workers": "{replicas: yes}"}, "spec.workers.replicas: True is not allowed; give an integer from 1 to 64"),
        ({"workers": "{replicas: }"}, "spec.workers.replicas: has no value: leave the field out, or give an integer"),
        ({"workers": "{replicas: 1.5}"}, "spec.workers.replicas: 1.5 is not allowed"),
        (
            {"gateway": "{auth: {}}"},
            "spec.gateway.auth: give one of apiKeysFile (on one machine) and apiKeysSecret (on",
        ),
        ({"routing": "{policy: best}"}, "spec.routing.policy: 'best' is not allowed; give one of least_load, orca"),
        ({"observability": "{otlpEndpoint: 'x:4317'}"}, "'x:4317' is not allowed; give an http:// or https:// addr"),
        (
            {"zzz": "{}"},
            "spec.zzz: unknown field; known: adapters, autoscaling, decode, deletionPolicy, failover, flow",
        ),
        ({"failover": "{maxMoves: -1}"}, "spec.failover.maxMoves: -1 is not allowed; give"),
        (
            {"gateway": "{replicas: 2, endpointPicker: {port: 9002}}"},
            "spec.gateway.endpointPicker: 2 gateways cannot share a port; give spec.gateway.replicas = 1",
        ),
        (
            {"workers": "{simulated: {timeScale: 2}}"},
            "spec.workers.simulated: has no meaning for spec.workers.device = cpu; leave it out, or give simulated",
        ),
        (
            {"workers": "{device: simulated, simulated: {model: llama-3.1-8b-h100, stepMilliseconds: 2}}"},
            "spec.workers.simulated.stepMilliseconds: has no meaning beside spec.workers.simulated.model",
        ),
    ],
)
def test_impossible_values(sections: dict[str, str], problem: str) -> None:
    (found,) = problems_of(spec(**sections))
    assert problem in found


@pytest.mark.parametrize("name", ["Smol", "-a", "a-", "a" * 64, "a_b", "a.b", ""])
def test_names_are_dns_labels(name: str) -> None:
    (found,) = problems_of(MINIMAL.replace("{name: smol}", f"{{name: '{name}'}}"))
    assert "metadata.name" in found
    assert "at most 40 of a-z, 0-9 and '-' (on one machine 63)" in found


def test_revision_belongs_to_hub_models() -> None:
    (found,) = problems_of(MINIMAL.replace("uri: /m.gguf", "uri: /m.gguf, revision: main"))
    assert "spec.model.revision: 'main' has no meaning for '/m.gguf'; only hf:// models have revisions" in found


def test_long_values_are_cut_in_messages() -> None:
    (found,) = problems_of(MINIMAL.replace("{name: smol}", f"{{name: {'x' * 5000}}}"))
    assert len(found) < 300


def test_file_problems(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot read it: No such file"):
        load_manifest(tmp_path / "none.yaml")
    with pytest.raises(ManifestError, match="cannot read it: Is a directory"):
        load_manifest(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_text("#" * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(ManifestError, match=f"larger than {MAX_MANIFEST_BYTES} bytes"):
        load_manifest(large)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff")
    with pytest.raises(ManifestError, match=r"not UTF-8 text \(byte 3\)"):
        load_manifest(binary)


def test_machine_limits_are_checked_only_for_a_machine() -> None:
    text = spec(workers="{replicas: 4, threads: 8}", kvCache="{memory: 8Gi}")
    parse_manifest(text, "m.yaml")
    assert problems_of(text, Machine(num_cores=2, memory_bytes=16 << 30)) == [
        "line 7: spec.workers.threads: 8 is more than this machine's 2 cores; leave it out, or give at most that",
        "line 8: spec.kvCache.memory: 8Gi for each of 4 workers is 32.0Gi, but this machine has 16.0Gi; give less",
    ]


def test_a_gpu_has_its_own_sizes() -> None:
    service = parse_manifest(spec(workers="{device: cuda}"), "m.yaml")
    assert worker_sizes(service.spec) == WorkerSizes(64, 512, 8192, None, 0.9)
    given = "{device: cuda, maxNumBatchedTokens: 256, gpuMemoryUtilization: 0.5}"
    service = parse_manifest(spec(workers=given, kvCache="{blockSize: 16}"), "m.yaml")
    assert worker_sizes(service.spec) == WorkerSizes(16, 256, 256, None, 0.5)


def test_a_gpu_is_needed_for_each_worker() -> None:
    text = spec(workers="{device: cuda, replicas: 3}")
    parse_manifest(text, "m.yaml")
    (problem,) = problems_of(text, Machine(num_cores=2, memory_bytes=1 << 30))
    assert problem == (
        "line 7: spec.workers.device: 'cuda' needs an NVIDIA GPU, and this machine has none that may be used; check "
        "the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES, or give cpu"
    )
    (problem,) = problems_of(text, Machine(num_cores=2, memory_bytes=1 << 30, gpus=("0", "1")))
    assert problem == (
        "line 7: spec.workers.replicas: 3 workers need a GPU each, and this machine has 2; give at most 2"
    )
    parse_manifest(text, "m.yaml", Machine(num_cores=2, memory_bytes=1 << 30, gpus=("0", "1", "2")))
    service = parse_manifest(text.replace("uri: /m.gguf", "uri: /m.gguf, maxModelLen: 2048"), "m.yaml")
    assert find_contradictions(service, model=SMOLLM2) == []  # what fits its memory is the worker's to say


def test_model_limits() -> None:
    assert SMOLLM2.kv_bytes_per_token("bfloat16") == 23_040
    assert SMOLLM2.kv_bytes_per_token("float32") == 46_080
    service = parse_manifest(spec(kvCache="{memory: 16Mi}"), "m.yaml")
    assert find_contradictions(service, model=SMOLLM2) == []
    long = parse_manifest(MINIMAL.replace("uri: /m.gguf", "uri: /m.gguf, maxModelLen: 4096"), "m.yaml")
    (problem,) = find_contradictions(long, model=SMOLLM2)
    assert str(problem) == "spec.model.maxModelLen: 4096 is more than the 2048 tokens that the model was made for"


def test_model_length_must_fit_the_cache() -> None:
    text = spec(kvCache="{memory: 16Mi}").replace("uri: /m.gguf", "uri: /m.gguf, maxModelLen: 2048")
    (problem,) = find_contradictions(parse_manifest(text, "m.yaml"), model=SMOLLM2)
    assert problem.path == "spec.model.maxModelLen"
    assert problem.message == (
        "2048 tokens do not fit spec.kvCache.memory = 16Mi, which holds 720; give at most 720, or 45.0Mi of memory"
    )
    (tiny,) = find_contradictions(parse_manifest(spec(kvCache="{memory: 64Ki}"), "m.yaml"), model=SMOLLM2)
    assert "64Ki holds 0 blocks of 360.0Ki; give at least 2" in tiny.message


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("1", 1), ("512Mi", 512 << 20), ("1.5Gi", 3 << 29), ("2G", 2 * 10**9), ("1k", 1000), ("1e9", 10**9), (7, 7)],
)
def test_quantities(quantity: str | int, expected: int) -> None:
    assert parse_quantity(quantity) == expected


@settings(deadline=None, max_examples=50)
@given(st.integers(min_value=1, max_value=1 << 20), st.sampled_from(["Ki", "Mi", "Gi"]))
def test_quantities_scale(number: int, suffix: str) -> None:
    assert parse_quantity(f"{number}{suffix}") == number * parse_quantity(f"1{suffix}")
    assert format_bytes(parse_quantity(f"1{suffix}")) == f"1.0{suffix}"


@pytest.mark.parametrize("quantity", ["", "Mi", "1 Gi", "-1Mi", "1mi", "0x10", "1e999"])
def test_non_quantities(quantity: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity such as"):
        parse_quantity(quantity)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=300))
def test_any_text_gives_problems_not_crashes(text: str) -> None:
    assert problems_of(text)


@settings(deadline=None, max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner)))
def test_any_value_in_any_section_gives_problems_not_crashes(value: object) -> None:
    for section in ("workers", "kvCache", "gateway", "observability"):
        assert problems_of(spec(**{section: json.dumps(value)}))
