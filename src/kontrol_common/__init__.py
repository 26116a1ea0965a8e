"""What both products use: `kontrol` and `automaton` import it, and it imports neither."""
