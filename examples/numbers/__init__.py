"""Dense numbers, and a rolling restart."""
