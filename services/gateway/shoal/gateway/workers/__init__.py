"""The workers behind the mesh: which there are, what they serve, and what their caches hold."""
