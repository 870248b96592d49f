"""What gateways of one mesh tell each other: loads under way, prompts on their way, and what became of a request.

Every gateway serves `PeerService` on a port of its own and follows every other one, as it follows workers' KV events.
"""
