"""Strict types at the front door: of the fields of public settings, and of what public methods are called with."""

import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, Union

from salmonrun.runtime.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def check_types(instance: Any, where: str = "") -> None:
    """Whether every field of a dataclass holds what its annotation says; for `__post_init__`, before ranges.

    True is no number, and numbers are finite; a whole number does for a float.

    Args:
        instance: of a dataclass.
        where: goes in front of a field's name in the message.

    Raises:
        ConfigError: one does not.
    """
    cls: type = type(instance)
    for name, hint in _field_hints(cls).items():
        _check(f"{where}{name}", getattr(instance, name), hint)


def checked(*but: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function refuse arguments that are not of the annotated types, with a ConfigError, before it is called.

    Args:
        but: parameters that are looked at by who uses them, who has more to say about them.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            hints = _argument_hints(function)
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                if name in hints and name not in but:
                    _check(name, value, hints[name])
            return function(*args, **kwargs)

        return guarded

    return decorate


@functools.cache
def _field_hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _argument_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """When it is called, and not when it is defined: annotations may name what is defined later."""
    return typing.get_type_hints(function)


def _check(name: str, value: Any, hint: Any) -> None:
    if _fits(value, hint):
        return
    for option in _options(hint):
        if typing.get_origin(option) is tuple and isinstance(value, tuple):  # say which of its values it is
            each = typing.get_args(option)[0]
            wrong = next(item for item in value if not _fits(item, each))
            raise ConfigError(f"{name} has {_show(wrong)}; expected {_expectation(each)}")
    raise ConfigError(f"{name} is {_show(value)}; expected {_expectation(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if len(options := _options(hint)) > 1:
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return any(type(value) is type(known) and value == known for known in args)
    if origin is tuple:  # tuple[X, ...]
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if hint is int:
        return not isinstance(value, bool) and isinstance(value, numbers.Integral)  # numpy's, too
    if hint is float:
        return not isinstance(value, bool) and isinstance(value, numbers.Real) and _finite(value)
    return isinstance(value, origin or hint)


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of another hint, itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is too large for a float
        return False


def _expectation(hint: Any) -> str:
    """What a hint stands for, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if len(options := _options(hint)) > 1:
        return _alternatives([_expectation(option) for option in options])
    if origin is Literal:
        return _alternatives([repr(known) for known in args])
    if origin is tuple:
        return f"a tuple (each {_expectation(args[0])})"
    known = {bool: "True or False", int: "a whole number", float: "a finite number", type(None): "None"}
    return known.get(hint) or str((origin or hint).__name__)


def _alternatives(options: list[str]) -> str:
    """'True or False' and 'never' are three things to choose from."""
    options = [part for option in options for part in option.split(" or ")]
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
