"""The public API: gRPC and OpenAI HTTP in front of the mesh."""
