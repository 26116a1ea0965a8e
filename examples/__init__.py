"""Ensembles of real servers, each on one machine: `python -m examples.NAME`."""
