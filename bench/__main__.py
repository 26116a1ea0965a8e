"""`python -m bench`: every benchmark, one after another."""

import asyncio

from bench import automaton, control_loop


async def _all() -> None:
    await control_loop.run()
    await automaton.run()


asyncio.run(_all())
