"""The one error that means: what you gave us is wrong, and here is how to mend it."""


class InputError(ValueError):
    """Bad input or arguments, told in one line: what was found, what was wanted, the fix.

    The command line prints the line and exits with 2; nothing has been half-written.
    """
