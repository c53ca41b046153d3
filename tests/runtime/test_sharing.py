"""What holds an engine's memory is shared as it is: it cannot be pickled or copied, and says what to do instead."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import SharingError

WAYS = (pickle.dumps, copy.copy, copy.deepcopy)


@pytest.mark.parametrize("way", WAYS)
def test_an_engine_is_shared_as_it_is(tiny_engine: Engine, speech: Path, way: Callable[[Any], object]) -> None:
    message = r"an Engine can be neither pickled nor copied: .* threads share one .* Engine\.load with the same folder"
    with pytest.raises(TypeError, match=message) as refused:
        way(tiny_engine)
    assert isinstance(refused.value, SharingError)
    with pytest.raises(TypeError, match="a Stream can be neither"), tiny_engine.stream() as stream:
        way(stream)
    with pytest.raises(TypeError, match="a Heard can be neither"), tiny_engine.listen(speech) as heard:
        way(heard)


def test_a_pool_of_processes_says_so(tiny_engine: Engine, speech: Path) -> None:
    """Where it happens to people: a method of an engine is sent to another process."""
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(TypeError, match="an Engine can be neither"),
    ):
        pool.submit(tiny_engine.generate, speech).result()
