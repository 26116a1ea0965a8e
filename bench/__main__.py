"""`python -m bench`: every benchmark, one after another."""

import asyncio

from bench import automaton, control_loop, invoke


async def _all() -> None:
    await control_loop.run()
    await invoke.run()
    await automaton.run()


asyncio.run(_all())
