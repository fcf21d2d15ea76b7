"""Storage errors that pass by themselves, and waiting until they have.

Every read and every write in longhaul goes through ``outlast``. What may pass (a server that is
busy, a connection that broke) is tried again with growing pauses, and the reader is told; what
will not (no such file, no permission) is raised at once.
"""

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

from pipeline.errors import DamagedError

T = TypeVar("T")

# How long an outage may last; a bucket that is gone for a minute must not cost a run.
PATIENCE_SECONDS = 300.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_SECONDS_BETWEEN_WARNINGS = 30.0
_READS = 5  # of what arrives damaged, before it is taken to be damaged where it lies

_PERMANENT = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError)
_PASSING = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs, for 503 and SlowDown
    errno.EREMOTEIO,  # s3fs, for 500
    errno.ESTALE,  # NFS
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
}


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, _PERMANENT):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    status = _http_status(error)
    if status is not None:
        return status >= 500 or status in (408, 429)
    return isinstance(error, _of_clients())


def _http_status(error: BaseException) -> int | None:
    """What the server answered, where the error (or what it was made from) says so."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status is not None:
                return int(status)
    return None


def _of_clients() -> tuple[type[BaseException], ...]:
    """The clients' own errors for what happens on the way; imported when something went wrong."""
    import http.client

    import aiohttp
    import botocore.exceptions as boto
    from botocore.parsers import ResponseParserError

    found: tuple[type[BaseException], ...] = (
        aiohttp.ClientConnectionError,
        aiohttp.ClientPayloadError,
        boto.ConnectionError,
        boto.HTTPClientError,
        boto.IncompleteReadError,
        ResponseParserError,
        http.client.IncompleteRead,
    )
    return found


def outlast(call: Callable[[], T], what: str) -> T:
    """``call()``, again and again while it fails in a way that may pass.

    what: for the warning, as "read s3://bucket/file". Raises the last error when
    ``PATIENCE_SECONDS`` (or ``LONGHAUL_STORAGE_PATIENCE`` in the environment) are over.
    """
    patience = float(os.environ.get("LONGHAUL_STORAGE_PATIENCE", PATIENCE_SECONDS))
    warned = -_SECONDS_BETWEEN_WARNINGS

    def warn(state: tenacity.RetryCallState) -> None:
        nonlocal warned
        if time.monotonic() - warned >= _SECONDS_BETWEEN_WARNINGS and state.outcome is not None:
            warned = time.monotonic()
            error = state.outcome.exception()
            left = patience - (state.seconds_since_start or 0.0)
            print(
                f"warning: cannot {what} now, trying again for up to {left:.0f} s: "
                f"{type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )

    return _first_plainly(
        call,
        lambda: tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=tenacity.wait_random_exponential(_FIRST_PAUSE, _LONGEST_PAUSE),
            stop=tenacity.stop_after_delay(patience),
            before_sleep=warn,
            reraise=True,
        ),
    )


def read_again(read: Callable[[], T]) -> T:
    """``read()``, a few times where it finds damage: it may be on the way and not in the store.

    Raises the last DamagedError.
    """

    def warn(state: tenacity.RetryCallState) -> None:
        if state.outcome is not None:
            error = state.outcome.exception()
            print(f"warning: {error}; reading it again", file=sys.stderr, flush=True)

    return _first_plainly(
        read,
        lambda: tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(DamagedError),
            wait=tenacity.wait_exponential(_FIRST_PAUSE),
            stop=tenacity.stop_after_attempt(_READS),
            before_sleep=warn,
            reraise=True,
        ),
    )


def _first_plainly(call: Callable[[], T], policy: Callable[[], tenacity.Retrying]) -> T:
    """``call()``; a policy is made only where it fails, since that takes as long as a read."""
    failed: list[Exception] = []
    try:
        return call()
    except Exception as error:
        failed.append(error)

    def go_on() -> T:
        if failed:
            raise failed.pop()  # the policy's first attempt was the plain one
        return call()

    return policy()(go_on)
