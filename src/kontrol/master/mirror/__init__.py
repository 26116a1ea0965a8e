"""The live pods in memory, as the store has them."""
