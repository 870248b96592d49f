"""What is refused before a cluster is asked: the tables that the API server and the webhook are held to as well."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from shoal.operator.api import Machine, ManifestError, parse_manifest
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from support.bad_manifests import BAD_FOR_THE_WEBHOOK, BAD_MANIFESTS, QWEN3_8B
from support.manifests import MINIMAL_ON_KUBERNETES, ROLES_ON_KUBERNETES, with_fields

LAPTOP = Machine(num_cores=8, memory_bytes=64 << 30, gpus=tuple("01234567"))
MIXTURE = {**QWEN3_8B, "numExperts": 128, "weights": "470G"}


def problems_of(fields: dict[str, Any], machine: Machine | None = None) -> list[str]:
    text = yaml.safe_dump(with_fields(MINIMAL_ON_KUBERNETES, fields))
    try:
        service = parse_manifest(text, "m.yaml", machine)
    except ManifestError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return list(map(str, find_kubernetes_contradictions(service)))


def test_there_are_many() -> None:
    assert len(BAD_MANIFESTS) + len(BAD_FOR_THE_WEBHOOK) > 100
    assert len({field for _, field, _ in BAD_MANIFESTS + BAD_FOR_THE_WEBHOOK}) > 60


@pytest.mark.parametrize(("fields", "field", "words"), BAD_MANIFESTS, ids=lambda value: str(value)[:60])
def test_each_is_refused_at_its_field(fields: dict[str, Any], field: str, words: str) -> None:
    assert [problem for problem in problems_of(fields) if problem.startswith(f"{field}: ")]


@pytest.mark.parametrize(("fields", "field", "words"), BAD_FOR_THE_WEBHOOK, ids=lambda value: str(value)[:60])
def test_each_is_refused_with_numbers_and_a_remedy(fields: dict[str, Any], field: str, words: str) -> None:
    assert [problem for problem in problems_of(fields) if problem.startswith(f"{field}: ") and words in problem]


def gpus(**fields: Any) -> dict[str, Any]:
    return {"device": "cuda", **fields}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"spec.model.config": QWEN3_8B, "spec.workers": gpus(parallelism={"tensor": 3})},
            "spec.workers.parallelism.tensor: 3 GPUs cannot share 32 attention heads evenly; give 1, 2, 4, 8, 16 or 32",
        ),
        (
            {
                "spec.model.config": {**QWEN3_8B, "numAttentionHeads": 36, "numKeyValueHeads": 4},
                "spec.workers": gpus(parallelism={"tensor": 6}),
            },
            "spec.workers.parallelism.tensor: 6 GPUs can neither divide nor repeat 4 KV heads evenly; give 1, 2, 4, 12",
        ),
        (
            {"spec.model.config": QWEN3_8B, "spec.workers": gpus(parallelism={"pipeline": 5})},
            "spec.workers.parallelism.pipeline: 5 stages cannot share 36 layers evenly; give 1, 2, 3, 4, 6, 9, 12, 18 ",
        ),
        (
            {"spec.model.config": MIXTURE, "spec.workers": gpus(parallelism={"data": 3, "expert": 3})},
            "spec.workers.parallelism.expert: 3 GPUs cannot share 128 experts evenly; give 1",
        ),
        (
            {"spec.model.config": QWEN3_8B, "spec.workers": gpus(parallelism={"data": 2, "expert": 2})},
            "spec.workers.parallelism.expert: 2 GPUs cannot share experts of a model that has none; leave it out",
        ),
        (
            {"spec.workers": gpus(parallelism={"tensor": 4, "pipeline": 3}, resources={"gpus": 6})},
            "spec.workers.resources.gpus: pods of 6 GPUs do not make up a worker of 12 (tensor x pipeline x data = 4 x "
            "3 x 1); give 1, 2, 4 or 12",
        ),
        (
            {"spec.workers": gpus(parallelism={"tensor": 2, "expert": 4})},
            "spec.workers.parallelism.expert: 4 does not divide the 2 GPUs of tensor x data that share experts; give 1 "
            "or 2",
        ),
    ],
)
def test_what_divides_is_said(fields: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(fields)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("workers", "fits"),
    [
        (gpus(parallelism={"tensor": 8, "data": 8, "expert": 64}, resources={"gpuProduct": "NVIDIA-H100-NVL"}), True),
        (gpus(parallelism={"tensor": 8, "expert": 8}, resources={"gpuProduct": "NVIDIA-H100-80GB-HBM3"}), True),
        (gpus(parallelism={"tensor": 4}, resources={"gpuProduct": "NVIDIA-H100-80GB-HBM3"}), False),
        (gpus(parallelism={"tensor": 4}, resources={"gpuProduct": "NVIDIA-H200"}), True),
        (gpus(parallelism={"tensor": 4}, resources={"gpuProduct": "Some-GPU"}), True),
        (gpus(parallelism={"tensor": 4, "pipeline": 2}, resources={"gpuMemory": "80G"}), True),
        (gpus(parallelism={"tensor": 4, "pipeline": 2}, resources={"gpuMemory": "64G"}), False),
    ],
)
def test_weights_are_shared_by_gpus(workers: dict[str, Any], fits: bool) -> None:
    """What of a mixture's 470 GB is in experts is not known: only what cannot fit in any case is refused."""
    problems = problems_of({"spec.model.config": MIXTURE, "spec.workers": workers})
    assert [problem.partition(":")[0] for problem in problems] == ([] if fits else ["spec.workers.resources"])


def test_heads_that_are_repeated_need_no_less_memory() -> None:
    """8 KV heads on 16 GPUs: each has one whole head."""
    config = {**QWEN3_8B, "maxPositionEmbeddings": 1 << 20}
    fields = {"spec.model.config": config, "spec.model.maxModelLen": 1 << 20}
    (at_8,) = problems_of({**fields, "spec.workers": gpus(parallelism={"tensor": 8}, resources={"gpuMemory": "20G"})})
    (at_16,) = problems_of({**fields, "spec.workers": gpus(parallelism={"tensor": 16}, resources={"gpuMemory": "20G"})})
    assert "needs 19.3 GB of KV cache on each GPU (0.018 MB a token)" in at_8
    assert "needs 19.3 GB of KV cache on each GPU (0.018 MB a token)" in at_16


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"spec.prefill": {}, "spec.decode": {}}, "spec.prefill"),
        ({"spec.workers": gpus(parallelism={"tensor": 2})}, "spec.workers.parallelism"),
        ({"spec.workers": gpus(resources={"gpuProduct": "NVIDIA-L4"})}, "spec.workers.resources.gpuProduct"),
        ({"spec.model.quantization": "fp8"}, "spec.model.quantization"),
        ({"spec.adapters": [{"name": "a", "uri": "hf://a/b"}]}, "spec.adapters"),
        ({"spec.speculative": {"method": "ngram"}}, "spec.speculative"),
        ({"spec.slo": {"ttftMilliseconds": 100}}, "spec.slo"),
        ({"spec.autoscaling": {"maxReplicas": 4}}, "spec.autoscaling"),
        ({"spec.rollout": {"drainSeconds": 10}}, "spec.rollout"),
        ({"spec.deletionPolicy": "Orphan"}, "spec.deletionPolicy"),
        ({"spec.imagePullSecrets": [{"name": "registry"}]}, "spec.imagePullSecrets"),
        ({"spec.podTemplate": {"worker": {}}}, "spec.podTemplate"),
        ({"spec.paused": True}, "spec.paused"),
        ({"spec.gateway.grpc": {"port": 9000}}, "spec.gateway.grpc.port"),
        ({"spec.gateway.http": {"port": 9000}}, "spec.gateway.http.port"),
        ({"spec.gateway.http": {"enabled": False}}, "spec.gateway.http.enabled"),
        ({"spec.gateway.service": {"type": "LoadBalancer"}}, "spec.gateway.service"),
        ({"spec.gateway.auth": {"apiKeysSecret": {"name": "keys"}}}, "spec.gateway.auth.apiKeysSecret"),
        (
            {"spec.kvCache": {"cpu": "1Gi", "ssd": "1Gi", "ssdVolume": {"claim": "c"}}},
            "spec.kvCache.ssdVolume",
        ),
    ],
)
def test_one_machine_says_what_it_cannot_do(fields: dict[str, Any], path: str) -> None:
    assert problems_of(fields) == []
    problems = problems_of(fields, LAPTOP)
    assert path in [problem.partition(":")[0] for problem in problems]
    assert all("leave it out" in problem or "give spec." in problem for problem in problems)


def test_everything_is_possible_somewhere() -> None:
    service = parse_manifest(ROLES_ON_KUBERNETES, "m.yaml")
    assert find_kubernetes_contradictions(service) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"spec.model.uri": "Qwen/Qwen3-8B"}, "; did you mean hf://Qwen/Qwen3-8B?"),
        ({"spec.model.uri": "https://huggingface.co/Qwen/Qwen3-8B"}, "; did you mean hf://Qwen/Qwen3-8B?"),
        (
            {"spec.model.uri": "s3://bucket/model"},
            "; of s3:// nothing is fetched: mount it as files",
        ),
        ({"spec.model.uri": "model"}, "starts with / or ./"),
        ({"spec.workers.resources": {"memory": "16GB"}}, "; did you mean 16G or 16Gi?"),
        ({"spec.workers.resources": {"memory": "16 gib"}}, "; did you mean 16Gi?"),
        ({"spec.workers.resources": {"memory": "plenty"}}, "at least 1"),
        ({"metadata.name": "a" * 64}, "a name: at most 40 of a-z, 0-9 and '-' (on one machine 63), starting with"),
    ],
)
def test_what_was_meant_is_told(fields: dict[str, Any], words: str) -> None:
    [problem] = problems_of(fields)
    assert words in problem
    assert ("did you mean" in problem) == ("did you mean" in words)
