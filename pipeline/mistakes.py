"""What is wrong with a document, in one line: where, what, and the nearest valid name."""

import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

import models
from models import ModelConfig


def nearest(name: str, valid: Sequence[str]) -> str:
    """The end of an error on an unknown name: the valid one that is nearest, or all."""
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(valid)}"


def tell(error: ValidationError, schema: type[BaseModel], document: Any) -> str:
    """The first mistake of a validation in one line: key, what is wrong, nearest valid name."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path) or "recipe"
    if first["type"] == "extra_forbidden":
        owner = _schema_at(schema, path[:-1], document)
        return f"unknown key {key!r}{nearest(path[-1], list(owner.model_fields))}"
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if not path:
        return message
    if first["type"] in ("value_error", "assertion_error"):
        return f"{key}: {message}"
    return f"{key}: {message}, not {first['input']!r}"


def _schema_at(schema: type[BaseModel], path: Sequence[str], document: Any) -> type[BaseModel]:
    """The class that declares the keys at ``path``; the model's class depends on its name."""
    parts = iter(path)
    for part in parts:
        document = document.get(part) if isinstance(document, dict) else None
        if part not in schema.model_fields:
            break
        annotation: Any = schema.model_fields[part].annotation
        if typing.get_origin(annotation) is dict:  # of names that the user chose
            annotation = typing.get_args(annotation)[1]
            next(parts, None)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
        if annotation is ModelConfig and isinstance(document, dict):
            annotation = models.config_of(document["name"])
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            schema = annotation
    return schema
