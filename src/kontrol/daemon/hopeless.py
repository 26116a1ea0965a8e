"""The one error that ends the daemon for its configuration."""


class Hopeless(Exception):
    """The daemon cannot do what it was configured to; the message says what to change."""
