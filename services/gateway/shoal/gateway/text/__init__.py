"""From token ids to the text a client sees: token bytes, whole characters, stop strings. Pure; no I/O."""
