"""SmolLM2 as transformers runs it: the independent answer that the engine is compared with."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.model import smollm2_path
from support.prompts import Prompt


@functools.cache
def reference_model() -> Any:
    """The model in float32, loaded by transformers' own GGUF reader."""
    path = smollm2_path()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval()


@functools.cache
def reference_tokenizer() -> Any:
    """The tokenizer, loaded by transformers' own GGUF reader."""
    path = smollm2_path()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def encode(prompt: Prompt) -> list[int]:
    """Token ids of a prompt, rendered with the model's template when it is a chat."""
    tokenizer = reference_tokenizer()
    if not prompt.chat:
        return list(tokenizer(prompt.text).input_ids)
    messages = [{"role": "user", "content": prompt.text}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


@torch.inference_mode()
def reference_logits(token_ids: list[int], first: int) -> torch.Tensor:
    """[len(token_ids) - first, vocab] float32: logits at positions `first` and on, each predicting the next token."""
    logits = reference_model()(torch.tensor([token_ids]), logits_to_keep=len(token_ids) - first).logits
    assert isinstance(logits, torch.Tensor)
    return logits[0].float()
