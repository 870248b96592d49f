"""What the stubs agree on."""

PROMPT_LEN = 64
VOCAB_SIZE = 49_152
