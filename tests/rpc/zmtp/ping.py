"""PING as a peer may send it: our own ends do not."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what fuzzes the machine imports it otherwise
    from kontrol.rpc.zmtp.machine import Machine

_COMMAND = 4


def ping(machine: "Machine", ttl: float) -> None:
    """Send a PING: the peer answers, and takes `machine` for lost after `ttl` seconds of silence.

    The handshake is complete, and the peer's protocol is ZMTP 3.
    """
    machine._put_frame(b"\x04PING" + round(ttl * 10).to_bytes(2), _COMMAND)
