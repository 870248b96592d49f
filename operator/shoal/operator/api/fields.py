"""Types of single fields, each with its range or pattern, and what to say when a value is not allowed."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from shoal.operator.api.quantity import (
    CPU_ALLOWED,
    CPU_PATTERN,
    QUANTITY_ALLOWED,
    QUANTITY_PATTERN,
    suggest_quantity,
)


def suggest_uri(text: str) -> str:
    """For what looks like a repository of the Hugging Face Hub, or names another store."""
    found = re.fullmatch(r"(?:https?://(?:huggingface\.co|hf\.co)/)?([A-Za-z0-9][\w.-]*/[\w.-]+)/?", text[:512])
    if found is not None:
        return f"; did you mean hf://{found.group(1)}?"
    scheme = re.match(r"[a-z][a-z0-9+.-]{0,15}://", text)
    return "" if scheme is None else f"; of {scheme.group()} nothing is fetched: mount it as files, and give their path"


DnsLabel = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        extra={
            "allowed": "a DNS label: at most 63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
        },
    ),
]
ServiceName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        extra={
            "allowed": "a name: at most 40 of a-z, 0-9 and '-' (on one machine 63), starting with a letter and ending "
            "with a letter or digit",
        },
    ),
]
ModelName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$",
        max_length=128,
        extra={
            "allowed": "at most 128 of A-Z, a-z, 0-9 and . _ : / -, starting with a letter or digit",
        },
    ),
]
Uri = Annotated[
    str,
    Meta(
        pattern=r"^((file|hf|pypi)://.+|[./~].*)$",
        max_length=4096,
        extra={
            "allowed": "a URI (file://, hf://, pypi://) or a path that starts with / or ./",
            "suggest": suggest_uri,
        },
    ),
]
AdapterUri = Annotated[
    str,
    Meta(
        pattern=r"^((file|hf|pypi|https?)://.+|[./~].*)$",
        max_length=4096,
        extra={
            "allowed": "a URI (file://, hf://, pypi://, https://) or a path that starts with / or ./",
            "suggest": suggest_uri,
        },
    ),
]
Sha256 = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{64}$",
        extra={"allowed": "64 lowercase hexadecimal digits"},
    ),
]
ByteQuantity = (
    Annotated[
        str,
        Meta(
            pattern=QUANTITY_PATTERN,
            max_length=32,
            extra={"allowed": QUANTITY_ALLOWED, "suggest": suggest_quantity},
        ),
    ]
    | Annotated[int, Meta(ge=1)]
)
HttpUrl = Annotated[
    str,
    Meta(
        pattern=r"^https?://[^\s/]+(/\S*)?$",
        max_length=1024,
        extra={"allowed": "an http:// or https:// address"},
    ),
]
FilePath = Annotated[
    str,
    Meta(min_length=1, max_length=4096, extra={"allowed": "the path of a file"}),
]
TenantName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        extra={"allowed": "a tenant of the API keys file: at most 64 of A-Z, a-z, 0-9 and . _ -"},
    ),
]
QueuedRequests = Annotated[int, Meta(ge=1, le=1 << 20)]
QueuedTokens = Annotated[int, Meta(ge=1, le=1 << 32)]
ObjectName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        max_length=253,
        extra={"allowed": "the name of a Kubernetes object: a-z, 0-9, '-' and '.'"},
    ),
]
SecretKey = Annotated[
    str,
    Meta(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253, extra={"allowed": "a key of a Secret: A-Z, a-z, 0-9 and . _ -"}),
]
GpuProduct = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        max_length=63,
        extra={"allowed": "a value of the node label nvidia.com/gpu.product, such as NVIDIA-H100-80GB-HBM3"},
    ),
]
CpuQuantity = (
    Annotated[str, Meta(pattern=CPU_PATTERN, max_length=16, extra={"allowed": CPU_ALLOWED})]
    | Annotated[int, Meta(ge=1, le=1024)]
)
