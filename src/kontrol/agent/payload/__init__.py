"""The payload file, and how its changes are noticed."""
