"""`python -m examples.numbers`: number pods, and restart them while their leader is killed."""

from examples.ensemble import Screen, main
from examples.numbers.workers import workers


async def play(screen: Screen) -> None:
    """Show what happens."""
    screen.step("two masters and four pods start")
    async with workers(screen) as made:
        found = await made.join("pod-a", "pod-b", "pod-c", "pod-d")
        screen.step(f"all know {found}")
        leaves = next(pod for pod, number in found.items() if number == 1)
        screen.step(f"{leaves} leaves; its number is free")
        screen.step(f"all know {await made.leave(leaves)}")
        screen.step("pod-e joins, and gets it")
        screen.step(f"all know {await made.join('pod-e')}")
        screen.step("kontrol set restart=today")
        await made.restart("today")
        await made.restarted(2)
        screen.step("the second pod restarts: the leader is killed with SIGKILL")
        screen.step(f"it was {(await made.kill_leader()).name}")
        await made.settled()
        screen.step(f"servers were started so often: {made.servers()}")
        screen.step(f"all know {await made.numbered()}")


if __name__ == "__main__":
    main(play)
