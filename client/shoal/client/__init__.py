"""The Python SDK and the `shoal` command."""
