"""Text to token ids and back, and chat templates, as a gRPC service."""
