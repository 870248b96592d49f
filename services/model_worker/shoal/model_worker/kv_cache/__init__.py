"""Who owns which KV block. No torch: property-tested on any machine."""
