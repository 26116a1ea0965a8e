"""What the store holds of a tier: its keys, and the form of its records."""
