"""Settings of the follower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from shoal.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerConfig:
    """Writes the endpoints of some clusters to files, one each, as the discovery service tells them."""

    control_plane: str = option(help="host:port of the discovery service.")
    control_plane_ca: str = option("", "File with certificates of whom to trust to be that; empty: no TLS.")
    service_cluster: str = option(help="Whose endpoints: namespace/name of the InferenceService.")
    service_node: str = option(help="A name of its own: the pod's.")
    folder: str = option(help="Where files go, as <folder>/xds/eds-<cluster>.json; it exists.")
    clusters: str = option("worker", "Names, with commas between.")
    keepalive_s: Annotated[float, Meta(ge=1)] = option(
        20.0, "After so long without a word, whether the discovery service is still there is asked."
    )
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Least severe log line to print.")
