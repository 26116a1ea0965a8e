"""The command that runs others on pods."""
