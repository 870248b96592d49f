"""How patient the supervisor is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorOptions:
    """Times of the supervisor. The defaults suit people at a terminal; tests use shorter ones."""

    probe_interval_s: float = 0.1
    """Between readiness probes of a starting process."""
    probe_timeout_s: float = 5.0
    start_report_interval_s: float = 10.0
    """A process that starts and says nothing of how far it is gets reported again this often."""
    health_interval_s: float = 2.0
    """Between health probes of a ready process."""
    health_failures: int = 3
    """Failed probes in a row before a process is reported unhealthy."""
    hang_timeout_s: float = 60.0
    """A ready process that answers no probe at all for this long is killed and started again."""
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    """Back-off doubles from the first to this."""
    stable_s: float = 30.0
    """Ready for this long, a process starts with a clean record."""
    crash_loop_after: int = 3
    """Failures in a row that make a crash loop."""
    max_start_attempts: int = 3
    """Failures before a process was ever ready that end the whole start."""
    max_log_bytes: int = 10 << 20
    """A log above this size begins anew; the lines before are kept in one file beside it."""
    log_check_interval_s: float = 1.0
