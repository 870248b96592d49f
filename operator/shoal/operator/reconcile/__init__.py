"""Keeps what is on the cluster as each InferenceService says it should be.

    handlers.py    what changed -> WorkQueue            kopf watches; nothing is decided here
    reconciler.py  key -> parse, plan, apply, status    level-based: looks at what is, not at what happened
    applying.py    objects -> API server                server-side apply; what the plan does not hold goes
    status.py      what is -> conditions and phase      pure

One reconcile does the same whatever woke it, so that a crash at any point costs nothing but time.
"""
