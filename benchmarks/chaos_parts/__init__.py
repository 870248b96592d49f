"""Parts of `chaos.py`: a mesh that can be hurt, what hurts it, who uses it meanwhile, and what may have leaked."""
