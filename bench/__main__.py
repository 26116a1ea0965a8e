"""`python -m bench`: every benchmark, one after another."""

import asyncio

from bench import control_loop

asyncio.run(control_loop.run())
