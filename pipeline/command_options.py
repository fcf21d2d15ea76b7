"""From a typed model to the options of a command, and back."""

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from pipeline.errors import LonghaulError

if TYPE_CHECKING:
    from pydantic import BaseModel


def add_command_of(
    app: typer.Typer, name: str, model: str, argument: str | None = None, first: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the command ``name``, with one option for each field of ``model``.

    model: ``module:class``, imported when the command's options are asked for, so that the help of
    all commands needs neither it nor pydantic. argument: the field that is positional instead.
    first: a positional argument of the command's own that comes before. A command with a parameter
    ``context`` is given typer's.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function).parameters

        class Command(TyperCommand):
            def get_params(self, ctx: Any) -> Any:
                if not self.params:
                    declared = _parameters(_load(model), "context" in own, argument, first)
                    function.__signature__ = inspect.Signature(declared)  # type: ignore[attr-defined]
                    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
                    alone.command()(function)
                    whole = typer.main.get_command(alone)
                    self.params, self.callback = whole.params, whole.callback
                return super().get_params(ctx)

        function.__signature__ = inspect.Signature()  # type: ignore[attr-defined]
        app.command(name, cls=Command)(function)
        return function

    return add


def _load(model: str) -> "type[BaseModel]":
    module, _, name = model.partition(":")
    found: type[BaseModel] = getattr(importlib.import_module(module), name)
    return found


def _parameters(
    model: "type[BaseModel]", context: bool, argument: str | None, first: str | None
) -> list[inspect.Parameter]:
    from pydantic_core import PydanticUndefined

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    if context:
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
    return parameters


def validated(model: "type[BaseModel]", values: dict[str, Any]) -> Any:
    """The model of the options that were given. Raises LonghaulError for a wrong one."""
    from pydantic import ValidationError

    given = {name: value for name, value in values.items() if value is not None and value != []}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        from pipeline.mistakes import tell

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
