"""The thread that keeps a log in order: reclaiming, checkpoints, probes."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from shoal.kv_store.disk.checkpointing import write_checkpoint
from shoal.kv_store.disk.probing import probe
from shoal.kv_store.disk.reclaim import Reclaimer
from shoal.kv_store.disk.volume import Volume

_RECLAIM_RETRY_S: Final = 0.05
_logger = logging.getLogger(__name__)


class Maintenance:
    """Runs until `close`."""

    def __init__(
        self, volume: Volume, reclaimer: Reclaimer, checkpoint_interval_s: float, checkpoint_bytes: int
    ) -> None:
        self._volume = volume
        self._reclaimer = reclaimer
        self._interval_s = checkpoint_interval_s
        self._checkpoint_bytes = checkpoint_bytes
        self._checkpoint_at_s = time.monotonic() + checkpoint_interval_s
        self._reclaim_at_s = 0.0
        self._checkpointing = threading.Lock()
        self._closed = False
        self._was_healthy = True
        self._thread = threading.Thread(target=self._run, name="kv-disk-maintenance", daemon=True)
        self._thread.start()

    def checkpoint(self) -> bool:
        """See `write_checkpoint`; waits for one that is being written."""
        with self._checkpointing:
            self._checkpoint_at_s = time.monotonic() + self._interval_s
            return write_checkpoint(self._volume)

    def close(self) -> None:
        """Ends the thread after what it is doing, and writes a last checkpoint if there is something to write."""
        with self._volume.lock:
            self._closed = True
            self._volume.wanted.notify_all()
        self._thread.join()
        if self._volume.dirty_bytes and self._volume.health.writes.closed:
            self.checkpoint()

    def _run(self) -> None:
        while self._wait():
            try:
                self._work()
            except Exception:  # the thread must live: without it the disk fills up
                _logger.exception("maintenance of the disk tier failed; it goes on")
                with self._volume.lock:
                    self._reclaim_at_s = time.monotonic() + 1.0

    def _wait(self) -> bool:
        """Returns when there is something to do; False when it is over."""
        with self._volume.lock:
            while not self._closed:
                wait_s = self._due_in_s()
                if wait_s <= 0:
                    return True
                self._volume.wanted.wait(min(wait_s, threading.TIMEOUT_MAX))
            return False

    def _due_in_s(self) -> float:
        volume, now_s = self._volume, time.monotonic()
        due_in_s = volume.health.probe_due_in_s
        times = [due_in_s if due_in_s is not None else float("inf")]
        if volume.health.writes.closed and volume.dirty_bytes:
            times.append(0.0 if volume.dirty_bytes >= self._checkpoint_bytes else self._checkpoint_at_s - now_s)
        else:
            times.append(self._interval_s)
        if volume.needs_reclaim():
            times.append(self._reclaim_at_s - now_s)
        return min(times)

    def _work(self) -> None:
        volume = self._volume
        self._tell_health()
        if volume.health.probe_due_in_s == 0.0:
            probe(volume)
            self._tell_health()
        with volume.lock:
            reclaim = volume.needs_reclaim() and time.monotonic() >= self._reclaim_at_s
        if reclaim and not self._reclaimer.run_once():
            self._reclaim_at_s = time.monotonic() + _RECLAIM_RETRY_S
        if not volume.dirty_bytes:
            self._checkpoint_at_s = max(self._checkpoint_at_s, time.monotonic() + self._interval_s)
        elif volume.health.writes.closed and (
            time.monotonic() >= self._checkpoint_at_s or volume.dirty_bytes >= self._checkpoint_bytes
        ):
            self.checkpoint()

    def _tell_health(self) -> None:
        healthy = self._volume.health.healthy
        if healthy != self._was_healthy:
            self._was_healthy = healthy
            if healthy:
                _logger.warning("the disk tier is back in service")
            else:
                _logger.error("the disk tier: %s", self._volume.health.reason)
