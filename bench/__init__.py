"""Benchmarks: `python -m bench`. Each prints a table; none decides a test."""
