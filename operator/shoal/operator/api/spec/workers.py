"""The engines: their sizes, how they share a model, and the memory of what they computed."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from shoal.operator.api.fields import ByteQuantity, CpuQuantity, FilePath, GpuProduct, ObjectName, SecretKey
from shoal.operator.api.spec.section import Section

DeviceName = Literal["cpu", "cuda", "simulated"]


class Simulated(Section, frozen=True, kw_only=True):
    """How long the steps of a simulated device take."""

    model: Annotated[
        Literal["llama-3.1-8b-h100"] | None,
        Meta(description="A model on a GPU whose steps were measured; brings that GPU's sizes. Default: none."),
    ] = None
    time_scale: Annotated[
        float, Meta(gt=0, le=1000, description="Multiplies the time of every step; 0.1 is ten times as fast.")
    ] = 1.0
    step_milliseconds: Annotated[float, Meta(ge=0, le=60_000, description="Time of a step, without a model.")] = 0.0
    token_microseconds: Annotated[
        float, Meta(ge=0, le=1_000_000, description="Time added for each of its tokens, without a model.")
    ] = 0.0


class Parallelism(Section, frozen=True, kw_only=True):
    """How many GPUs make one worker, tensor x pipeline x data, and what each of them holds."""

    tensor: Annotated[int, Meta(ge=1, le=64, description="GPUs that share each layer.")] = 1
    pipeline: Annotated[int, Meta(ge=1, le=64, description="Groups of layers, one after the other.")] = 1
    expert: Annotated[
        int, Meta(ge=1, le=512, description="GPUs, of tensor x data, that share the experts of a layer.")
    ] = 1
    data: Annotated[
        int, Meta(ge=1, le=64, description="Copies of what is not experts, each with its own requests.")
    ] = 1


class Resources(Section, frozen=True, kw_only=True):
    """What a pod asks of its node. On Kubernetes only."""

    cpu: Annotated[CpuQuantity | None, Meta(description="Cores. Default: as many as compute threads, on a GPU 4.")] = (
        None
    )
    memory: Annotated[
        ByteQuantity | None, Meta(description="Also its limit. Default: none is asked for, and any may be used.")
    ] = None
    gpus: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None,
        Meta(description="GPUs of a pod. Default: all of its worker, as far as 8 go."),
    ] = None
    gpu_product: Annotated[
        GpuProduct | None,
        Meta(description="Only on nodes with this label nvidia.com/gpu.product, such as NVIDIA-H100-80GB-HBM3."),
    ] = None
    gpu_memory: Annotated[
        ByteQuantity | None,
        Meta(description="Memory of one GPU, to check what fits. Default: as known of gpuProduct, or not checked."),
    ] = None


class Workers(Section, frozen=True, kw_only=True):
    """The engines; with prefill and decode, what both have in common."""

    replicas: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Engines, each with its own copy of the weights. With ratio: of both roles together.",
        ),
    ] = 1
    device: Annotated[
        DeviceName,
        Meta(
            description="What they compute on. cuda: an NVIDIA GPU for each. simulated: made-up tokens, to try "
            "everything around the engine."
        ),
    ] = "cpu"
    simulated: Annotated[
        Simulated | None, Meta(description="For device simulated only. Default: steps take no time.")
    ] = None
    parallelism: Annotated[
        Parallelism | None, Meta(description="For device cuda only. Default: one GPU for each worker.")
    ] = None
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="Compute threads of each worker. Default: cores / replicas."),
    ] = None
    max_num_seqs: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Most sequences in one step. Default: 16, on a GPU 512."),
    ] = None
    max_num_batched_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 20)] | None,
        Meta(description="Most tokens in one step. Default: 512, on a GPU 8192."),
    ] = None
    gpu_memory_utilization: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(
            description="Share of the GPU's memory that a worker may use; what weights and steps leave of it holds KV "
            "blocks. For device cuda only. Default: 0.9."
        ),
    ] = None
    max_queued_requests: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Waiting requests beyond which a worker answers RESOURCE_EXHAUSTED.")
    ] = 256
    resources: Resources = Resources()


class RoleWorkers(Section, frozen=True, kw_only=True):
    """Workers that do one part of each request: read prompts (prefill), or write answers (decode)."""

    replicas: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None, Meta(description="Engines. Default: 1, or their part by ratio.")
    ] = None
    parallelism: Annotated[Parallelism | None, Meta(description="Default: one GPU for each worker.")] = None
    resources: Resources = Resources()


class Ratio(Section, frozen=True, kw_only=True):
    """How workers.replicas are divided between the roles."""

    prefill: Annotated[int, Meta(ge=1, le=64, description="Parts that read prompts.")]
    decode: Annotated[int, Meta(ge=1, le=64, description="Parts that write answers.")]


class SsdVolume(Section, frozen=True, kw_only=True):
    """Where a node's KV store has its disk on Kubernetes: one of the three."""

    host_path: Annotated[
        Annotated[FilePath, Meta(pattern="^/")] | None,
        Meta(description="A folder of each node, for placement Node. The namespace must allow hostPath volumes."),
    ] = None
    storage_class_name: Annotated[
        ObjectName | None, Meta(description="A volume of this class for each store's pod, gone with the pod.")
    ] = None
    claim: Annotated[
        ObjectName | None,
        Meta(description="A PersistentVolumeClaim that all nodes can write, with a folder for each store."),
    ] = None


class PeersSecret(Section, frozen=True, kw_only=True):
    """One key of a Secret."""

    name: Annotated[ObjectName, Meta(description="The Secret, in the namespace of the InferenceService.")]
    key: Annotated[SecretKey, Meta(description="Which of its values, of 16 bytes or more, it is.")] = "secret"


class KvCache(Section, frozen=True, kw_only=True):
    """The paged KV cache of each worker, and the node's store behind it."""

    block_size: Annotated[
        Literal[8, 16, 32, 64, 128] | None, Meta(description="Tokens in a block. Default: 16, on a GPU 64.")
    ] = None
    memory: Annotated[
        ByteQuantity | None,
        Meta(description="Memory for blocks, each worker. Not for device cuda. Default: 512Mi."),
    ] = None
    cpu: Annotated[
        ByteQuantity | None,
        Meta(
            description="Memory of the node's KV store, which its workers share: blocks that they give up, or that "
            "another one computed, are loaded from there. On Kubernetes see placement. Default: no store."
        ),
    ] = None
    placement: Annotated[
        Literal["Pod", "Node"],
        Meta(
            description="On Kubernetes: a KV store in each worker's pod, or one for all of a node, which needs a "
            "namespace that allows hostPath volumes. Sizes are of each store."
        ),
    ] = "Pod"
    peers_secret: Annotated[
        PeersSecret | None,
        Meta(
            description="Lets the KV stores of all pods or nodes share what they have; by the secret they know each "
            "other. On Kubernetes only. Default: each has its own."
        ),
    ] = None
    ssd: Annotated[
        ByteQuantity | None,
        Meta(
            description="Disk of the KV store, behind its memory. Needs cpu, and ssdFolder or ssdVolume. Default: none."
        ),
    ] = None
    ssd_folder: Annotated[
        FilePath | None, Meta(description="Where that is on one machine: a folder of this service alone.")
    ] = None
    ssd_volume: Annotated[SsdVolume | None, Meta(description="Where that is on Kubernetes.")] = None
    codec: Annotated[
        Literal["none", "fp8"],
        Meta(description="How blocks are stored. fp8: in half the bytes, with a small loss. Needs cpu."),
    ] = "none"
