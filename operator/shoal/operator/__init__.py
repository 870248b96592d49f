"""InferenceService: manifest to spec to plan to running processes."""
