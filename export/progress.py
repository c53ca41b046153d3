"""What an export shows while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from torch import Tensor
from tqdm import tqdm

from salmonrun.training.tensors import LazyTensors


class Progress:
    """A bar of steps, and one below it with an estimate while a step goes through weights."""

    def __init__(self, steps: int, show: bool) -> None:
        self._show = show
        self._bar = tqdm(total=steps, disable=not show, bar_format="{desc:<24}{bar}{n}/{total}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def __call__(self, step: str) -> None:
        """A step begins."""
        self._bar.set_description(step)
        self._bar.update()

    @contextmanager
    def weights(self, what: str, total: int, unit: str = "weights") -> Iterator[Callable[[int], object]]:
        """Call what is given with each number of weights, of `total`, that are done."""
        form = "  {desc:<22}{bar}{n_fmt}/{total_fmt} " + unit + " [{elapsed}<{remaining}]"
        with tqdm(total=total, desc=what, disable=not self._show, bar_format=form, unit_scale=True, leave=False) as bar:
            yield bar.update


def counted(tensors: LazyTensors, step: Callable[[int], object]) -> LazyTensors:
    """The tensors; whenever one is read, `step` is told its size."""

    def counting(get: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def count() -> Tensor:
            tensor = get()
            step(tensor.numel())
            return tensor

        return count

    return {name: counting(get) for name, get in tensors.items()}
