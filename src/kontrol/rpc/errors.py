"""What a caller may catch (`RpcError` and below), and what a handler may raise (`Refused`)."""


class RpcError(Exception):
    """The root of what a client or a server raises."""


class RemoteError(RpcError):
    """The peer answered with an error: its `name`, its `message`, and its `traceback` as sent."""

    def __init__(self, name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message
        self.traceback = traceback


class LostRemote(RpcError):
    """The peer sent no heartbeats, or the connection to it ended or could not be made.

    What was asked may or may not have been done.
    """


class CallTimeout(RpcError):
    """No answer came within the call's own timeout. What was asked may or may not have been done.

    The peer has been asked to give up.
    """


class ProtocolError(RpcError):
    """The peer broke the protocol on this call: what it sent cannot be an answer to it."""


class Unsendable(RpcError):
    """What was to be sent has no form on the wire, or is over a limit. Nothing was sent."""


class Refused(Exception):
    """Raised by a handler: the caller gets an error with this `name` and `message`, no more."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message
