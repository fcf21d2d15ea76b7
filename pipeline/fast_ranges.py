"""Ranges of objects through obstore, an optional client in Rust that leaves Python's lock alone."""

import functools
from typing import Any

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.transient import outlast

_HTTP = {"allow_http": True}  # MinIO and the like; what the endpoint says decides
_ONCE = {"max_retries": 0}  # ``outlast`` tries again


def read_range(url: str, start: int, stop: int) -> bytes:
    """The bytes ``[start, stop)`` of an object; see ``storage.read_bytes``."""
    if storage.is_local(url):
        return storage.read_bytes(url, start, stop)
    scheme, _, path = url.partition("://")
    bucket, _, key = path.partition("/")
    with storage.told(url, "read"):
        store = _store(f"{scheme}://{bucket}")
        return outlast(lambda: _get(store, key, start, stop), f"read {url}")


@functools.cache
def _store(root: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise LonghaulError(
            "reading.client obstore needs the package obstore: pip install 'longhaul[obstore]'"
        ) from error
    style = {"virtual_hosted_style_request": "false"} if root.startswith("s3://") else {}
    options: dict[str, Any] = {"config": style, "client_options": _HTTP, "retry_config": _ONCE}
    return from_url(root, **options)


def _get(store: Any, key: str, start: int, stop: int) -> bytes:
    import obstore
    from obstore import exceptions as said

    try:
        return bytes(obstore.get_range(store, key, start=start, end=stop))
    except said.NotFoundError as error:
        raise FileNotFoundError(key) from error
    except (said.PermissionDeniedError, said.UnauthenticatedError) as error:
        raise PermissionError(str(error).splitlines()[0]) from error
    except said.GenericError as error:  # what happened on the way, and 5xx
        raise ConnectionError(str(error).splitlines()[0]) from error
