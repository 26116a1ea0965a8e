"""The commands that show a tier through one of its masters, and those that make it act."""
