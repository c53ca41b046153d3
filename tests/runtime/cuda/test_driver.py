"""What NVIDIA's driver is asked, of a library that stands for it."""

from collections.abc import Callable

import pytest

from salmonrun.runtime.cuda.driver import Driver, Gpu, NoDriverError, read_driver


def test_gpus_are_read(stub_driver: Callable[[], Driver]) -> None:
    gpus = tuple(Gpu(f"Stub {10 + i}", (9, 0), 24 << 30, (20010 + i) << 20) for i in range(2))
    assert stub_driver() == Driver((13, 1), gpus)


def test_free_memory_may_not_be_known(stub_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gpu.free_bytes for gpu in stub_driver(nvml="no-such-library.so").gpus] == [None, None]
    monkeypatch.setenv("STUB_NVML", "9")
    assert stub_driver().gpus[0].free_bytes is None


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("100", "is there, but sees no GPU"),
        ("803", r"does not start \(system has unsupported driver\)"),
        ("999", r"does not start \(error 999\)"),
    ],
)
def test_a_driver_that_does_not_work(
    stub_driver: Callable[[], Driver], monkeypatch: pytest.MonkeyPatch, status: str, message: str
) -> None:
    monkeypatch.setenv("STUB_INIT", status)
    with pytest.raises(NoDriverError, match=message):
        stub_driver()


def test_no_driver() -> None:
    with pytest.raises(NoDriverError, match=r"not installed \(no-such-library\.so: cannot open shared object file"):
        read_driver("no-such-library.so")
