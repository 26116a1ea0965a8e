"""`kontrol invoke`, which runs commands on pods."""
