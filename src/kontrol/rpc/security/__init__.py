"""Keys: who may connect to the endpoint, and as what."""
