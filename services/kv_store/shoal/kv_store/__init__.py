"""KV blocks on CPU memory and SSD, content-addressed by block key: one store a node."""
