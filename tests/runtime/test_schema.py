"""Strict JSON: what does not fit is refused, and the message names the place."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.schema import from_dict, to_dict


@dataclass(frozen=True)
class Inner:
    size: int
    name: str = "x"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ConfigError(f"size is {self.size}; it must not be negative")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    ratio: float
    flag: bool
    kind: Literal["a", "b"]
    maybe: str | None
    dims: tuple[int | str, ...] = ()
    inners: dict[str, Inner] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    free: Any = None


FULL: dict[str, Any] = {
    "inner": {"size": 3, "name": "y"},
    "ratio": 0.5,
    "flag": True,
    "kind": "a",
    "maybe": "m",
    "dims": [1, "n", 2],
    "inners": {"one": {"size": 1, "name": "x"}},
    "lists": {"k": ["a", "b"], "none": []},
    "free": {"any": [1, None, "x"]},
}
OUTER = Outer(
    Inner(3, "y"),
    0.5,
    True,
    "a",
    "m",
    (1, "n", 2),
    {"one": Inner(1)},
    {"k": ("a", "b"), "none": ()},
    {"any": [1, None, "x"]},
)


def changed(**changes: Any) -> dict[str, Any]:
    return FULL | changes


def test_from_dict() -> None:
    assert from_dict(Outer, FULL, "file") == OUTER


@dataclass(frozen=True)
class First:
    kind: Literal["first"] = "first"


@dataclass(frozen=True)
class Second:
    kind: Literal["second"] = "second"


@dataclass(frozen=True)
class Either:
    one: First | Second | None


@pytest.mark.parametrize("kind", ["third", None, 1, {"kind": "first"}, ["first"]])
def test_objects_of_an_unknown_kind(kind: Any) -> None:
    assert from_dict(Either, {"one": {"kind": "second"}}, "file") == Either(Second())
    with pytest.raises(ConfigError, match=r"file\.one: expected an object whose kind is 'first' or 'second'"):
        from_dict(Either, {"one": {"kind": kind}}, "file")


def test_to_dict() -> None:
    assert to_dict(OUTER) == FULL
    assert json.loads(json.dumps(to_dict(OUTER))) == FULL


@given(
    st.builds(
        Outer,
        inner=st.builds(Inner, size=st.integers(0), name=st.text()),
        ratio=st.floats(allow_nan=False, allow_subnormal=False),
        flag=st.booleans(),
        kind=st.sampled_from(["a", "b"]),
        maybe=st.none() | st.text(),
        dims=st.lists(st.integers() | st.text()).map(tuple),
        inners=st.dictionaries(st.text(), st.builds(Inner, size=st.integers(0))),
        lists=st.dictionaries(st.text(), st.lists(st.text()).map(tuple)),
    )
)
def test_round_trip_through_json(value: Outer) -> None:
    assert from_dict(Outer, json.loads(json.dumps(to_dict(value))), "file") == value


def test_defaults_may_be_left_out() -> None:
    data = {key: FULL[key] for key in ("ratio", "flag", "kind")} | {"inner": {"size": 1}, "maybe": None}
    assert from_dict(Outer, data, "file") == Outer(Inner(1), 0.5, True, "a", None)


def test_an_int_serves_as_float() -> None:
    ratio = from_dict(Outer, changed(ratio=2), "file").ratio
    assert ratio == 2.0
    assert type(ratio) is float


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "file: expected an object, got list []"),
        (None, "file: expected an object, got NoneType None"),
        (changed(extra=1), "file: unknown key 'extra'; known keys are inner, ratio, "),
        (changed(b=1, a=2), "file: unknown key 'a', 'b'; known keys are"),
        ({k: v for k, v in FULL.items() if k != "ratio"}, "file: key 'ratio' is missing"),
        (changed(inner={}), "file.inner: key 'size' is missing"),
        (changed(inner={"size": 1, "colour": 2}), "file.inner: unknown key 'colour'; known keys are size, name"),
        (changed(inner=3), "file.inner: expected an object, got int 3"),
        (changed(inner={"size": "3"}), "file.inner.size: expected int, got str '3'"),
        (changed(inner={"size": 3.0}), "file.inner.size: expected int, got float 3.0"),
        (changed(inner={"size": True}), "file.inner.size: expected int, got bool True"),
        (changed(inner={"size": None}), "file.inner.size: expected int, got NoneType None"),
        (changed(ratio="0.5"), "file.ratio: expected float, got str '0.5'"),
        (changed(ratio=False), "file.ratio: expected float, got bool False"),
        (changed(flag=1), "file.flag: expected bool, got int 1"),
        (changed(kind="c"), "file.kind: expected one of 'a', 'b', got str 'c'"),
        (changed(kind=["a"]), "file.kind: expected one of 'a', 'b', got list ['a']"),
        (changed(maybe=1), "file.maybe: expected str, got int 1"),
        (changed(dims="12"), "file.dims: expected a list, got str '12'"),
        (changed(dims=[1, None]), "file.dims[1]: expected int, got NoneType None"),
        (changed(inners=[]), "file.inners: expected an object, got list []"),
        (changed(inners={"one": {"size": "1"}}), "file.inners.one.size: expected int, got str '1'"),
        (changed(lists={"k": "ab"}), "file.lists.k: expected a list, got str 'ab'"),
        (changed(lists={"k": ["a", 2]}), "file.lists.k[1]: expected str, got int 2"),
        (changed(inner={"size": -1}), "file.inner: size is -1; it must not be negative"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, data, "file")
    assert str(caught.value).startswith(message)


def test_long_values_are_shortened() -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, changed(kind="z" * 1000), "file")
    assert len(str(caught.value)) < 150


def test_a_number_too_large_for_a_float() -> None:
    with pytest.raises(ConfigError, match=r"file\.ratio: "):
        from_dict(Outer, changed(ratio=10**400), "file")
