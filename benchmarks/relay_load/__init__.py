"""What `gateway.py` puts around the gateway: prepared HTTP/2 on both sides of it, and the services it asks."""
