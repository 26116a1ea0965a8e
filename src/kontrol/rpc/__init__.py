"""ZeroRPC, protocol version 3: a pure codec and channel state machine, and ZeroMQ beneath them."""
