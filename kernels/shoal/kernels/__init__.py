"""Operations of the engine: each with a readable reference and fast implementations."""
