"""A sidecar of gateways: keeps files of endpoints as the discovery service tells them.

So a gateway sees the workers that its Envoy sees, by the same files as on one machine.
"""
