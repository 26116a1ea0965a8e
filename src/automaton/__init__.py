"""Automaton: a finite-state machine of shell scripts, driven over a unix socket."""
