"""From a typed model to the options of a command, and back."""

import inspect
from collections.abc import Callable
from typing import Any

import typer
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from pipeline.errors import LonghaulError


def with_options_of(
    model: type[BaseModel], argument: str | None = None, first: str | None = None
) -> Callable[..., Any]:
    """Give a command one option for each field of ``model``.

    argument: the field that is positional instead. first: a positional argument of the command's
    own that comes before. A command with a parameter ``context`` is given typer's.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = []
        if "context" in inspect.signature(command).parameters:
            parameters.append(inspect.Parameter("context", keyword, annotation=typer.Context))
        if first is not None:
            own = typer.Argument(..., help="Folder or URL to write to.")
            parameters.append(inspect.Parameter(first, keyword, default=own, annotation=str))
        for name, field in model.model_fields.items():
            default = ... if field.default is PydanticUndefined else field.default
            if name == argument:
                declared: Any = typer.Argument(default, help=field.description)
            else:
                declared = typer.Option(default, help=field.description)
            parameters.append(
                inspect.Parameter(name, keyword, default=declared, annotation=field.annotation)
            )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def validated(model: type[BaseModel], values: dict[str, Any]) -> Any:
    """The model of the options that were given. Raises LonghaulError for a wrong one."""
    from pipeline.config import tell

    given = {name: value for name, value in values.items() if value is not None and value != []}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise LonghaulError(tell(error, model, given)) from error


def only_given(context: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given to the running command, without those left at their defaults."""

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name != "DEFAULT"

    return {name: value for name, value in values.items() if given(name)}


def pair(text: str) -> tuple[str, str]:
    """Key and value of ``key=value``."""
    key, separator, value = text.partition("=")
    if not separator:
        raise LonghaulError(f"{text!r} is not of the form key=value")
    return key, value
