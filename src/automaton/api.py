"""Manifests in Python: states are functions.

    from automaton.api import State, States, goto

    def idle() -> None:
        goto("work", "42")

    def work(number: str) -> None:
        print("working on", number)

    def stop() -> None:
        print("done")

    States(
        [State(idle, transitions=["work"]), State(work, transitions=["idle"]), State(stop)],
        initial=idle,
        terminal=stop,
    )

Each function runs in a process of its own, with no argument or with the input. What it prints goes
where a script's output goes; if it raises, the script has failed, and the traceback is logged.

This module is public: `__all__` changes as semantic versioning allows. Nothing else in `automaton`
is for others to import.
"""

from automaton.states import Probe, Refused, State, States, goto

__all__ = ["Probe", "Refused", "State", "States", "goto"]

for _name in __all__:
    globals()[_name].__module__ = __name__  # which is what a traceback shows
