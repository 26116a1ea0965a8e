"""Who leads, and under which term."""
