"""The one exception that is written for people."""


class UserError(Exception):
    """Wrong input or a broken file: says what, where, what was found and what to do. Programs print it and exit 1."""
