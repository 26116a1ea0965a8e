"""What the store holds of a tier: where it is, and how it is spelled."""
