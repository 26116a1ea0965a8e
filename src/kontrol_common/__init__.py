"""What both products stand on: `kontrol` and `automaton` import it, and it imports neither."""
