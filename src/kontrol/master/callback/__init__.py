"""The callback: its input, its process, and what came of it."""
