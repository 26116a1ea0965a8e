"""Invariant 14: on a pod whose process runs, the silent hook is over before its loss is told.

Judged by when the store drops the pod, which is before any run that tells of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.health import Health, is_agent
from tests.simulation.history import (
    KEYS,
    Acknowledged,
    Commit,
    Fault,
    History,
    Hook,
    Process,
    Restore,
    Sent,
    StoreView,
    deleted,
    puts,
)

OVER = ("done", "failed", "killed", "ended for another")


@dataclass
class Pod:
    """The process of one agent: what it was told, and its hooks."""

    id: str
    key: str
    since: float
    hooks: bool = True
    sent: float | None = None  # when the last keepalive that was acknowledged was sent
    undisturbed: bool = True  # since then
    running: str = ""
    begun: float | None = None  # the first silent hook since then
    over: float | None = None  # when that one was over
    heard: bool = False  # whether the last hook that began was the heard one
    nonces: set[str] = field(default_factory=set)


def told_before_lost(history: History) -> Iterator[str]:
    """14: a pod that the store drops has had its silent hook, and that is over."""
    for _, pod, at, key in losses(history):
        since = f"{at - (pod.sent or pod.since):.3f} s after its last keepalive"
        if pod.begun is None:
            yield f"{pod.id} ({key}) is lost at {at:.3f}, {since}: no silent hook began"
        elif pod.over is None:
            yield f"{pod.id} ({key}) is lost at {at:.3f}, {since}: its silent hook still runs"


def losses(history: History) -> Iterator[tuple[str, Pod, float, str]]:
    """Yield the node and process of each pod that the store drops while that runs undisturbed.

    That is: it was acknowledged, ran unpaused since it sent that keepalive, no other process used
    its id or key, and the store was not restored.
    """
    view, health, pods = StoreView(), Health(), Pods()
    for entry in history:
        health.apply(entry)
        gone: list[str] = []
        if isinstance(entry, Commit):
            left = {
                name
                for name, registration in puts(entry, KEYS.registrations)
                if registration.get("left")
            }
            gone = [
                key for key in deleted(entry, KEYS.pods) if key in view.pods and key not in left
            ]
        names = {key: str(view.pods[key]["id"]) for key in gone}
        nonces = {key: str(view.pods[key]["nonce"]) for key in gone}
        pods.apply(entry)
        if not view.apply(entry):
            continue
        for key in gone:
            if key in view.pods:
                continue
            for node, pod in pods.alive.items():
                mine = (pod.id, pod.key) == (names[key], key) and nonces[key] in pod.nonces
                if mine and pod.hooks and pod.sent is not None and pod.undisturbed:
                    yield node, pod, entry.at, key


class Pods:
    """The processes of agents."""

    def __init__(self) -> None:
        self.alive: dict[str, Pod] = {}

    def apply(self, entry: object) -> None:
        match entry:
            case Process(at, node, up, _, name, key, hooks) if is_agent(node):
                self.alive.pop(node, None)
                if up:
                    new = self.alive[node] = Pod(name or node, key, at, hooks=hooks)
                    for other in self.alive.values():
                        if other is not new and (other.id == new.id or other.key == new.key):
                            other.undisturbed = new.undisturbed = False
            case Sent(_, node, _, _, nonce) if node in self.alive:
                self.alive[node].nonces.add(nonce)
            case Acknowledged(_, sent, _, _, nonce):
                for pod in self.alive.values():
                    if nonce in pod.nonces:
                        pod.sent, pod.undisturbed = sent, not self._conflicts(pod)
                        pod.begun = pod.over = None
            case Fault(_, "paused", node) if node in self.alive:
                self.alive[node].undisturbed = False
            case Restore():
                for pod in self.alive.values():
                    pod.undisturbed = False
            case Hook(at, node, name, what) if node in self.alive:
                pod = self.alive[node]
                pod.running = name if what == "begins" else ""
                if name == "silent" and what == "begins" and pod.begun is None:
                    pod.begun = at
                elif name == "silent" and what in OVER and pod.over is None:
                    pod.over = at
            case _:
                pass

    def _conflicts(self, pod: Pod) -> bool:
        return any(
            other is not pod and (other.id == pod.id or other.key == pod.key)
            for other in self.alive.values()
        )


def in_order(history: History) -> Iterator[str]:
    """Hooks of one process never overlap, and none begins that does not fit what is known."""
    running: dict[str, str] = {}
    up: set[str] = set()
    for entry in history:
        match entry:
            case Process(_, node, alive):
                running.pop(node, None)
                (up.add if alive else up.discard)(node)
            case Hook(_, node) if node not in up:
                pass  # it deregisters, and then it ends
            case Hook(at, node, name, "begins"):
                if node in running:
                    yield f"hook {name} of {node} begins at {at:.3f} while {running[node]} runs"
                running[node] = name
            case Hook(at, node, name, _):
                if running.pop(node, "") != name:
                    yield f"hook {name} of {node} ends at {at:.3f}: it did not run"
            case _:
                pass
