"""The numbering and its rolling restart, on real servers, masters and etcd."""

import pytest
from examples.ensemble import Screen
from examples.numbers.workers import workers

pytestmark = pytest.mark.timeout(300)


class Watching(Screen):
    """Sees which pods are away, and which were while another was."""

    def __init__(self) -> None:
        super().__init__()
        self.away: list[str] = []
        self.order: list[str] = []
        self.overlaps: list[list[str]] = []

    def line(self, name: str, line: str) -> None:
        super().line(name, line)
        pod = name.partition(" ")[0]
        if "-> restarting" in line:
            self.order.append(pod)
            self.away.append(pod)
            if len(self.away) > 1:
                self.overlaps.append(list(self.away))
        elif "-> started" in line and pod in self.away:
            self.away.remove(pod)


async def test_each_pod_is_restarted_once_though_the_leader_is_killed_in_the_middle() -> None:
    screen = Watching()
    async with workers(screen) as made:
        first = await made.join("pod-a", "pod-b", "pod-c", "pod-d")
        assert sorted(first.values()) == [0, 1, 2, 3]
        leaves = next(name for name, number in first.items() if number == 1)
        left = {name: number for name, number in first.items() if name != leaves}
        assert await made.leave(leaves) == left
        now = await made.join("pod-e")
        assert now == {**left, "pod-e": 1}
        await made.restart("v2")
        await made.restarted(2)
        killed = await made.kill_leader()
        await made.settled()
        assert made.here.leader() not in (None, killed)
        assert made.servers() == dict.fromkeys(now, 2)
        assert not screen.overlaps
        assert list(dict.fromkeys(screen.order)) == sorted(now, key=now.__getitem__)
        # The token is an old one for all runs that follow, and a pod that joins is new already.
        assert await made.join("pod-f") == {**now, "pod-f": 4}
        assert made.servers() == {**dict.fromkeys(now, 2), "pod-f": 1}
