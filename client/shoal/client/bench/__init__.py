"""Drives a running endpoint and measures it: `shoal bench serve`.

What is measured means what it means in vLLM's serving benchmark, so that numbers can be compared:

- TTFT, time to first token: from sending a request to the first chunk with output.
- ITL, inter-token latency: each gap between two chunks with output of one request, all requests pooled. A chunk may
  hold several tokens; they arrive together and make one gap.
- TPOT, time per output token: (E2E - TTFT) / (output tokens - 1), one value a request with two tokens or more.
- E2E: from sending a request to its last chunk with output.
- Duration: from the first request sent to the last one finished. Rates divide by it and count successful requests only.
- Goodput: successful requests a second that met every objective given with `--slo`. For `itl` a request counts by the
  mean of its own gaps.
- Percentiles interpolate linearly between the nearest ranks (numpy's default).
"""
