"""Runs commands that never outlive the daemon: a guard process owns each (see `guard`)."""
