"""Why a boot fails; each kind is an exit status of its own."""


class BootError(Exception):
    """The boot cannot go on. The message is one line: what was tried, what came, the mend."""

    status = 1


class Misconfigured(BootError):
    """What the pod was given cannot be used: no service account, a bad file."""

    status = 2


class Unanswered(BootError):
    """The Kubernetes API gave no usable answer in time."""

    status = 4


class Refused(BootError):
    """The Kubernetes API refused, knows no such object, or cannot be trusted: no use to wait."""

    status = 5


class NoAddress(BootError):
    """The pod was given no address in time."""

    status = 6
