"""`shoal-worker` with the engine process of `faulty_engine`."""

from __future__ import annotations

import asyncio
import sys

from shoal.config import load_or_exit
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.front import run_front
from shoal.telemetry import setup_logs

if __name__ == "__main__":
    config = load_or_exit(WorkerConfig, program="faulty-worker").with_device_defaults()
    setup_logs("model_worker", log_format="json")
    sys.exit(asyncio.run(run_front(config, engine_module="support.faulty_engine")))
