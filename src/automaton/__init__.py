"""Automaton: a finite-state machine of shell scripts, controlled over a unix socket."""
