"""What the leader does: it decides, runs, books, and answers operators."""
