"""The gateway's pick for other people's gateways: the endpoint picker of the Gateway API Inference Extension.

A proxy asks `envoy.service.ext_proc.v3.ExternalProcessor` (the extension's proposal 004, version 1.0) before it sends a
request to a worker; the answer names workers, best first. Unless the proxy insists, nothing of the response passes
through here.
"""
