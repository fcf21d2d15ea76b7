"""The one exception that reaches a user: a single line with what, where and what to do."""


class LonghaulError(Exception):
    """A mistake in the input, the recipe or the surroundings, told in one line.

    The command line prints it as ``error: ...`` and exits with 1. Anything else that escapes is a
    defect of longhaul and keeps its traceback.
    """
