"""What is served: the weights, adapters to them, and guesses ahead of them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from shoal.operator.api.fields import AdapterUri, ByteQuantity, FilePath, ModelName, ObjectName, Sha256, Uri
from shoal.operator.api.spec.section import Section


class ModelConfig(Section, frozen=True, kw_only=True):
    """What the model's config.json says, under the names that it has there: for arithmetic before it is fetched."""

    num_hidden_layers: Annotated[int, Meta(ge=1, le=4096, description="Layers.")]
    num_attention_heads: Annotated[int, Meta(ge=1, le=4096, description="Query heads of each.")]
    num_key_value_heads: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None, Meta(description="KV heads. Default: as many as query heads.")
    ] = None
    head_dim: Annotated[int, Meta(ge=1, le=4096, description="Elements of a head.")]
    num_experts: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Of a mixture of experts: routed ones, of each layer. Default: none."),
    ] = None
    max_position_embeddings: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 24)] | None, Meta(description="Longest sequence, in tokens.")
    ] = None
    weights: Annotated[
        ByteQuantity | None, Meta(description="Size of all weights, as they are in memory. Default: not known.")
    ] = None


class Model(Section, frozen=True, kw_only=True):
    """Which weights to serve, and as what."""

    name: Annotated[ModelName, Meta(description="What clients call the model.")]
    uri: Annotated[Uri, Meta(description="Where the weights are.")]
    sha256: Annotated[Sha256 | None, Meta(description="Digest that the file must have.")] = None
    revision: Annotated[
        Annotated[str, Meta(min_length=1, max_length=256)] | None,
        Meta(description="Commit, tag or branch, for hf:// only."),
    ] = None
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Meta(description="Type of weights in memory.")] = "auto"
    quantization: Annotated[
        Literal["auto", "none", "fp8", "awq", "gptq"],
        Meta(description="How weights are made smaller. auto: as the model's files say."),
    ] = "auto"
    max_model_len: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 24)] | None,
        Meta(description="Longest prompt plus output, in tokens. Default: what the model allows."),
    ] = None
    load_format: Annotated[
        Literal["auto", "safetensors", "gguf", "dummy"], Meta(description="How to read the weights.")
    ] = "auto"
    chat_template: Annotated[
        FilePath | None, Meta(description="File of a Jinja template that replaces the model's own.")
    ] = None
    cache_claim: Annotated[
        ObjectName | None,
        Meta(
            description="PersistentVolumeClaim for fetched models, mounted at /models in every pod that reads them. On "
            "Kubernetes only. Default: each pod fetches its own copy."
        ),
    ] = None
    config: Annotated[
        ModelConfig | None,
        Meta(
            description="What is known of the model, so that sizes are checked when the manifest is applied. Default: "
            "read from the model where it is at hand."
        ),
    ] = None


class Adapter(Section, frozen=True, kw_only=True):
    """A LoRA adapter, served beside the model under a name of its own."""

    name: Annotated[ModelName, Meta(description="What clients call it.")]
    uri: Annotated[
        AdapterUri,
        Meta(description="Folder or repository of adapter_config.json and adapter_model.safetensors, or the latter."),
    ]
    sha256: Annotated[Sha256 | None, Meta(description="Digest that adapter_model.safetensors must have.")] = None
    rank: Annotated[Annotated[int, Meta(ge=1, le=512)] | None, Meta(description="Default: as its files say.")] = None


class DraftModel(Section, frozen=True, kw_only=True):
    """A small model that guesses."""

    uri: Annotated[Uri, Meta(description="Where the weights are.")]
    sha256: Annotated[Sha256 | None, Meta(description="Digest that the file must have.")] = None


class Speculative(Section, frozen=True, kw_only=True):
    """Tokens guessed ahead and checked together."""

    method: Annotated[
        Literal["ngram", "draft_model", "eagle"],
        Meta(description="Who guesses: what the prompt repeats, a small model, or a head on this one."),
    ]
    num_speculative_tokens: Annotated[int, Meta(ge=1, le=16, description="Tokens guessed at a time.")] = 4
    draft_model: Annotated[DraftModel | None, Meta(description="For draft_model and eagle.")] = None
