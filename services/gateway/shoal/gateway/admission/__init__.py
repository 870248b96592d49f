"""When a request may go to the workers, and who is next when not all can (ADR 0011).

`entry`, `tenant_queue`, `fair_queue`, `drain_rate` and `room` are state without I/O, clock or event loop; `lane` joins
them for one model, and `admission` lets requests wait.
"""
