"""What a calibration keeps: read as it was written, and what cannot be read is said to be made anew."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from salmonrun.export.weights.kept import load, save
from salmonrun.runtime.errors import BundleError

ARRAYS = {
    "states": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scales": np.ones(3, np.float16),
    "packed": np.arange(5, dtype=np.uint8),
    "multiples": np.arange(-3, 3, dtype=np.int8),
    "lengths": [1, 2],
}


def test_what_is_kept_is_read(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    found = load(tmp_path / "a.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:60] + bytes(80) + content[140:],
        lambda content: b"not a zip file",
    ],
)
def test_what_cannot_be_read_is_to_be_removed(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, ARRAYS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=rf"a\.npz, which an earlier .*: remove {tmp_path}, and all in it is made"):
        load(path)
