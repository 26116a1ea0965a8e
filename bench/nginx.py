"""Requests through nginx, which follows a published list, while backends come and go.

nginx, its backends, two masters and etcd are real processes on loopback (`examples/nginx`). A
request is sent once, on a connection of its own; it fails unless it gets a 200 within 10 s.
"""

from collections.abc import Sequence

from examples.ensemble import Screen
from examples.nginx.shop import Result, shop

from bench import Option
from bench.table import Row, quantiles

TITLE = "nginx follows the ensemble"
OPTIONS = {
    "rounds": Option(5, 1, "backends that join, leave, are killed and freeze"),
    "clients": Option(16, 8, "requests at the same time"),
}


async def measure(rounds: int, clients: int) -> dict[str, list[Result]]:
    """Return what requests met, by what happened to backends."""
    found: dict[str, list[Result]] = {}
    async with shop(Screen(), clients=clients) as made:
        for number in range(rounds):
            for result in (
                await made.join(f"leaves-{number}"),
                await made.leave(f"leaves-{number}"),
                await made.join(f"dies-{number}"),
                await made.kill(f"dies-{number}"),
                await made.stop("web-1"),
                await made.resume("web-1"),
            ):
                found.setdefault(result.what, []).append(result)
    return found


async def posts(rounds: int, clients: int) -> list[Result]:
    """Return what requests that may not be repeated met when a backend was killed."""
    found = []
    async with shop(Screen(), clients=clients, method="POST") as made:
        for number in range(rounds):
            await made.join(f"dies-{number}")
            found.append(await made.kill(f"dies-{number}"))
    return found


def row(what: str, results: Sequence[Result], goal: str) -> Row:
    """Sum up what one kind of fault did."""
    requests = [each for result in results for each in result.requests]
    failed = sum(len(result.failed) for result in results)
    slow = sum(result.slow for result in results)
    longest = max(result.longest for result in results)
    followed = [result.followed for result in results]
    return Row(
        what,
        f"{failed} of {len(requests)} failed, {slow} over 1 s, longest {longest:.2f} s;"
        f" followed after {min(followed):.1f} to {max(followed):.1f} s (n={len(results)})",
        goal=goal,
        values={
            "requests": len(requests),
            "failed": failed,
            "slow": slow,
            "longest_ms": 1000 * longest,
            **quantiles("followed", followed),
        },
    )


async def run(*, rounds: int, clients: int) -> list[Row]:
    """Measure."""
    found = await measure(rounds, clients)
    return [
        row("a backend joins", found["join"], "0 failed"),
        row("a backend leaves", found["leave"], "0 failed"),
        row("a backend is killed", found["kill"], "0 failed"),
        row("   the same, POST, which nginx does not repeat", await posts(rounds, clients), ""),
        row("a backend freezes (SIGSTOP)", found["SIGSTOP"], ""),
        row("   goes on (SIGCONT)", found["SIGCONT"], ""),
    ]
