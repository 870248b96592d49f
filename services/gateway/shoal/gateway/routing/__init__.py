"""Which worker should serve a request. Synchronous: no I/O, no task; the one clock is handed in."""
