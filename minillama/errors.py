"""The errors a user meets: each message is one line that names what was expected and what was found."""


class MinillamaError(Exception):
    """Something a user gave cannot be used (a broken file, a bad size). The command line exits with 1."""


class UsageError(MinillamaError):
    """A command or function was called in a way that can never work. The command line exits with 2."""
