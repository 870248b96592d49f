"""Configuration of a service: one frozen dataclass, filled from flags, environment, file and defaults.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        port: Annotated[int, Meta(ge=0, le=65535)] = option(50051, "Port to listen on; 0 picks a free one.")
        token: str = option("", "Bearer token.", secret=True)

    config = load(Config, program="shoal-worker")

Precedence: `--port 1` over `SHOAL_PORT=1` over `port = 1` in the TOML file named by `--config` (or `SHOAL_CONFIG`) over
the default. Unknown keys are refused by name, values are checked against their annotation, and `describe` prints the
effective configuration with secrets masked.
"""

from shoal.config.loading import ConfigError, load, load_or_exit, option
from shoal.config.showing import describe

__all__ = ["ConfigError", "describe", "load", "load_or_exit", "option"]
