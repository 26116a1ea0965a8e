"""Keepalives in, pods in the store out."""
