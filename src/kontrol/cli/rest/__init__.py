"""The client of a master's REST endpoint."""
