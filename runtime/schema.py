"""Strict JSON <-> frozen dataclasses: unknown keys, missing keys and wrong types are errors that name the place."""

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar, Union

from salmonrun.runtime.errors import ConfigError

T = TypeVar("T")
OPTIONAL = {"optional": True}  # metadata of a field that a complete file may leave out: it is younger than the format


def from_dict(cls: type[T], data: Any, where: str, complete: bool = False) -> T:
    """Build the dataclass `cls` from parsed JSON.

    Args:
        cls: a dataclass.
        data: parsed JSON.
        where: names the place in error messages.
        complete: every key must be there, those with a default too, but for `OPTIONAL` ones: for files that outlive
            the defaults.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, got {_show(data)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields), key=str)  # YAML has keys of any type
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(map(repr, unknown))}; known keys are {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _parse(hints[name], data[name], f"{where}.{name}", complete)
        elif (complete and not field.metadata.get("optional")) or _has_no_default(field):
            raise ConfigError(f"{where}: key {name!r} is missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _has_no_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def to_dict(value: Any) -> Any:
    """The JSON form of a dataclass: tuples become lists, nested dataclasses become objects.

    An `OPTIONAL` field that has its default is left out, so that older code can read what does not use it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_dict(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not (field.metadata.get("optional") and getattr(value, field.name) == field.default)
        }
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    return value


def _parse(hint: Any, value: Any, where: str, complete: bool) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _parse_union(args, value, where, complete)
    if origin is Literal:
        if not any(type(value) is type(arg) and value == arg for arg in args):  # 32.0 and True equal integers
            raise ConfigError(f"{where}: expected one of {', '.join(map(repr, args))}, got {_show(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {_show(value)}")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, got {len(value)}")
        return tuple(_parse(args[0], item, f"{where}[{i}]", complete) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected an object, got {_show(value)}")
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ConfigError(f"{where}: expected text as key, got {_show(wrong[0])}")
        return {_text(key, where): _parse(args[1], item, f"{where}.{key}", complete) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where, complete)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: {_show(value)} is too large for a float") from None
    if type(value) is not hint:
        raise ConfigError(f"{where}: expected {hint.__name__}, got {_show(value)}")
    return _text(value, where) if hint is str else value


def _text(value: str, where: str) -> str:
    """JSON can name halves of characters, which no tokenizer, file or terminal takes."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: {_show(value)} is not valid Unicode ({error.reason})") from error
    return value


def _parse_union(options: tuple[Any, ...], value: Any, where: str, complete: bool) -> Any:
    if value is None and type(None) in options:
        return None
    kinds = _kinds(options)
    if kinds:
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            expected = " or ".join(map(repr, kinds))
            raise ConfigError(f"{where}: expected an object whose kind is {expected}, got {_show(value)}")
        return _parse(kinds[kind], value, where, complete)
    errors = []
    for option in options:
        if option is not type(None):
            try:
                return _parse(option, value, where, complete)
            except ConfigError as error:
                errors.append(error)
    raise errors[0]


def _kinds(options: tuple[Any, ...]) -> dict[str, Any]:
    """The dataclasses of a union, by the value of the field `kind` that tells them apart; none if there is only one."""
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    if len(classes) < 2:
        return {}
    return {typing.get_args(typing.get_type_hints(option)["kind"])[0]: option for option in classes}


def _show(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
