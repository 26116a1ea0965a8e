"""`python -m examples.nginx`: requests, while backends join, leave, are killed and stop."""

from examples.ensemble import Screen, main
from examples.nginx.shop import HEAD, shop


async def play(screen: Screen) -> None:
    """Show what happens, and print a table."""
    screen.step("two masters, nginx and three backends start")
    async with shop(screen) as made:
        screen.step("web-4 joins")
        results = [await made.join("web-4")]
        screen.step("web-1 leaves")
        results.append(await made.leave("web-1"))
        screen.step("web-2 is killed: SIGKILL to all of its processes")
        results.append(await made.kill("web-2"))
        screen.step("web-3 freezes: SIGSTOP to all of its processes")
        results.append(await made.stop("web-3"))
        screen.step("web-3 goes on: SIGCONT")
        results.append(await made.resume("web-3"))
    print(f"\n{HEAD}", *results, sep="\n")


if __name__ == "__main__":
    main(play)
