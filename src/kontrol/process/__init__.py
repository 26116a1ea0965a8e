"""Commands under guard: started, bounded, drained, and never left behind."""
