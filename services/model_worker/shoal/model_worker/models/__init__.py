"""One file per model family, built from layers."""
