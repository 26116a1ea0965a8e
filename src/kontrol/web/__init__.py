"""The REST endpoint: health, metrics, and what operators see and ask for."""
