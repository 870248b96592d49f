"""Envoy's configuration as plain data, and where its binary is.

One Envoy has two listeners: EDGE, where clients come in, and MESH (loopback only), through which the gateway reaches
tokenizers and workers. `render_files` gives everything Envoy reads; each function behind it returns the JSON form of
one Envoy resource. Nothing here touches a file or a process.
"""

from shoal.operator.envoy import clusters
from shoal.operator.envoy.binary import EnvoyMissing, find_envoy
from shoal.operator.envoy.config import EnvoyOptions, Resources, render_files, render_resources
from shoal.operator.envoy.endpoints import Endpoint, cluster_load_assignment, endpoints_file

__all__ = [
    "Endpoint",
    "EnvoyMissing",
    "EnvoyOptions",
    "Resources",
    "cluster_load_assignment",
    "clusters",
    "endpoints_file",
    "find_envoy",
    "render_files",
    "render_resources",
]
