"""What a request asks for, read from its path and body: a prompt to look up in the workers' caches."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.gateway.http.translation import chat_request, completion_requests, parse_chat, parse_completion
from shoal.rpc.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class WorkerPrompt:
    """A call of `ModelWorkerService.Generate`: tokens, and the salt that its sender has chosen."""

    message: worker_pb2.GenerateRequest


@dataclass(frozen=True, slots=True)
class PublicPrompt:
    """A call that still has to become tokens; its cache is its tenant's."""

    message: gateway_pb2.GenerateRequest


def read_prompt(path: str, body: bytes) -> WorkerPrompt | PublicPrompt | None:
    """None when the body is nothing that we know: the pick then goes by load alone. Of several prompts the first.

    What is wrong with a request is for its worker to say, not for the picker.
    """
    try:
        match path.partition("?")[0]:
            case "/shoal.api.worker.v1.ModelWorkerService/Generate":
                return WorkerPrompt(worker_pb2.GenerateRequest.FromString(_first_message(body)))
            case "/shoal.api.gateway.v1.GatewayService/Generate":
                return PublicPrompt(gateway_pb2.GenerateRequest.FromString(_first_message(body)))
            case "/v1/chat/completions":
                return PublicPrompt(chat_request(parse_chat(body)))
            case "/v1/completions":
                return PublicPrompt(completion_requests(parse_completion(body))[0])
    except (InvalidArgument, DecodeError, ValueError):
        pass
    return None


def _first_message(body: bytes) -> bytes:
    """Of a gRPC body: a byte that says whether it is compressed, its length, itself. ValueError if it is not whole."""
    if len(body) < 5:
        raise ValueError("no gRPC message")
    compressed, length = struct.unpack(">BI", body[:5])
    if compressed or len(body) < 5 + length:
        raise ValueError("a gRPC message that is compressed or cut off")
    return body[5 : 5 + length]
