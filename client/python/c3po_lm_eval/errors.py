"""The one exception of this package: what it says is meant for the person at the command line."""


class C3poError(Exception):
    """A wrong argument, a failed call, or something that the service cannot do. The message names the argument or field."""
