"""The two errors of our own: what you gave us is wrong; what you asked for cannot go on."""


class InputError(ValueError):
    """Bad input or arguments, told in one line: what was found, what was wanted, the fix.

    The command line prints the line and exits with 2; nothing has been half-written.
    """


class RunError(RuntimeError):
    """A run cannot go on, through no fault of what it was given; told in one line.

    A worker has died, the disk is full. The line says what was saved. The command line prints it
    and exits with 1.
    """
