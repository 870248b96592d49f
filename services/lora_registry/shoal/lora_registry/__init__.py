"""Keeps LoRA adapters as immutable, verified versions."""
