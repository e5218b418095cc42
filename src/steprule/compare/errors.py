"""The one error that a wrong command line gives."""


class UsageError(ValueError):
    """An argument of the command that makes no sense; its message names the argument and the value."""
