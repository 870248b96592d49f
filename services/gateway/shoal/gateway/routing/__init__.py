"""Which worker should serve a request. Pure and synchronous: no I/O, no clock, no task."""
