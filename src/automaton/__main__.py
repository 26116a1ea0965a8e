"""`python -m automaton`."""

from automaton.cli import main

main()
