"""The OpenAI-compatible HTTP API: a translation of the calls that the gRPC API makes, in the same process."""
