"""ZMTP, ZeroMQ's protocol on a connection: a state machine, and its security mechanisms."""
