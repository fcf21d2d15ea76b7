"""The one exception that reaches a user: a single line with what, where and what to do."""


class LonghaulError(Exception):
    """A mistake in the input, the recipe or the surroundings, told in one line.

    The command line prints it as ``error: ...`` and exits with 1. Anything else that escapes is a
    defect of longhaul and keeps its traceback.
    """


class DamagedError(LonghaulError):
    """What was read is not what the manifest, the index or the commit says."""
