"""The mesh in virtual time: real router, scheduler and cache code, a simulated clock, and no network.

One thread stands for a gateway and any number of workers. A request arrives at its time in the trace; the gateway's
router picks a worker from the index and the loads that a gateway would have at that moment; the worker's scheduler
plans its steps and its cache keeps its blocks; a timing model (`shoal.model_worker.simulated_timing`) says when each
step ends. KV events reach the router's index some time after the step that caused them.

What is measured:

- Hit tokens: prompt tokens found in the worker's cache when the request first got a slot.
- Hit ratio: their sum over the sum of prompt tokens, over requests without an error.
- TTFT: from arrival to the end of the step that made the first token. E2E: to the end of that of the last.
- Busy: the part of the time until the last arrival that workers computed anything. One decoding stream keeps a worker
  busy, so this says little of how much more it could take; the load (`replay.compare`) says that.

What is left out: the network, tokenizing, the gateway's and the worker's own CPU time. On a GPU the worker's is hidden
behind the device's (steps are planned one ahead, here as well).
"""
