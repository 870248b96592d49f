"""What an adapter's files say: PEFT's layout, checked, and the digest of what it does. No network, no store."""

from shoal.lora_registry.adapters.base_model import BaseModel, read_base_model
from shoal.lora_registry.adapters.inspecting import Adapter, inspect
from shoal.lora_registry.adapters.peft_config import CONFIG_FILE, WEIGHTS_FILE

__all__ = ["Adapter", "BaseModel", "CONFIG_FILE", "WEIGHTS_FILE", "inspect", "read_base_model"]
