"""Keepalives: to whom, when, and until when."""
