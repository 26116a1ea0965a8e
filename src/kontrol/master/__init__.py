"""The master: keeps the ensemble in the store, elects a leader, and runs the callback."""
