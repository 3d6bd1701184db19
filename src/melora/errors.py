"""The package's one exception."""


class MeloraError(ValueError):
    """Bad input: the message is one line that says what is wrong, where, and what to do about it.

    A subclass of ValueError, so that code written for PEFT's own errors catches it too.
    """
