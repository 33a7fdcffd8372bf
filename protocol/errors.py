"""Errors by fault: a peer's, and the user's. Faults of Shoal itself are ordinary exceptions and end the program."""


class ProtocolError(ValueError):
    """A peer's message breaks the protocol. It is reported and dropped; it never ends the program."""


def printable(text: str, most: int) -> str:
    """A peer's text as one line that is safe to print and to log: cut after `most` characters, with every character that is
    not printable escaped."""
    cut = text[:most] + "..." * (len(text) > most)
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in cut)


class UserError(ValueError):
    """A mistake that the user can put right. The command line prints its one line and exits with 2; no traceback."""
