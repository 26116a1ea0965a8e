"""ZeroRPC, protocol version 3: a codec and a channel state machine, on ZeroMQ."""
