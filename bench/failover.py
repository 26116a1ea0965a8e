"""The leader's end, by SIGTERM, to the next leader: real masters on loopback."""

import signal
import time

from bench import Option
from bench.stage import stage
from bench.table import Row, milliseconds, quantiles

TITLE = "Fail-over of the leader"
OPTIONS = {"rounds": Option(10, 5, "leaders that end")}


async def run(*, rounds: int) -> list[Row]:
    """Measure."""
    async with stage() as here:
        hosts = ["127.0.0.1", "127.0.0.2"]
        leader = await here.master("m0", hosts[0])
        taken = []
        for number in range(1, rounds + 1):
            standby = await here.daemon(f"m{number}", host=hosts[number % 2], KONTROL_MODE="master")
            await standby.until("candidate, behind")
            begun = time.monotonic()
            leader.process.send_signal(signal.SIGTERM)
            taken.append(await standby.until("leader, in term") - begun)
            await leader.process.wait()
            leader = standby
        await leader.end()
    return [
        Row(
            "leader SIGTERM to next leader",
            milliseconds(taken),
            "etcdctl lock 12 ms (elsewhere)",
            "",
            "2.0 s (1.1-3.6)",
            values=quantiles("successor", taken),
        )
    ]
