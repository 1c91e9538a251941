"""What the commands turn into a single line and exit code 2."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what was given, what is allowed, what to do. Being a `ValueError`, it reads the same in a
    user's own code.
    """
