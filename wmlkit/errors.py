"""The one exception for a mistake that the user can mend."""


class UserError(Exception):
    """What was found, what was expected, what to do: one sentence. The command line exits with status 2."""
