"""`make cluster`: a control plane to try things on, until Ctrl-C. With --build-only its programs are built, no more."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading

from shoal.operator.api.crd import custom_resource_definition
from shoal.operator.substrate.ports import PortReservations
from support.control_plane.binaries import BinariesMissing, find_binaries
from support.control_plane.cluster import running_control_plane
from support.control_plane.definitions import find_definitions
from support.control_plane.lws import start_lws
from support.control_plane.promql import find_query_errors


def main() -> int:
    """Prints the kubeconfig's path once the control plane is ready."""
    try:
        programs = find_binaries(report=lambda line: print(line, file=sys.stderr, flush=True))
        definitions = [custom_resource_definition(), *find_definitions().values()]
    except BinariesMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if "--build-only" in sys.argv[1:]:
        find_query_errors([])
        return 0
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(running_control_plane(programs, definitions=definitions))
        start_lws(plane, stack.enter_context(PortReservations()))
        print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
        tools = f"kubectl is {plane.programs['kubectl']}, helm {plane.programs['helm']}"
        print(f"# {tools}; logs are in {plane.folder}. Ctrl-C ends it.")
        print("# Pods only pretend to run, that of an installed chart too. With that line in another terminal,")
        print("# `shoal-operator` looks after InferenceServices (their definition is there already).", flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
