"""What a bundle is loaded as and where it runs, in one piece; `Engine.load` says what each of it means."""

from dataclasses import dataclass

from salmonrun.runtime.config import KvCacheType, Limits
from salmonrun.runtime.cores import thread_count
from salmonrun.runtime.cuda.ready import require_gpu
from salmonrun.runtime.decoders import DecoderName
from salmonrun.runtime.device import Device, check_device, is_gpu
from salmonrun.runtime.encoders import EncoderName
from salmonrun.runtime.errors import ConfigError


@dataclass(frozen=True)
class Loading:
    """The arguments of `Engine.load` that outlive the opening of the bundle."""

    device: Device = "auto"
    decoder: DecoderName = "auto"
    threads: int | None = None
    limits: Limits | None = None
    kv_cache: KvCacheType = "fp16"
    encoder: EncoderName = "auto"
    release_weights: bool = False
    copy: bool = False

    def check(self) -> None:
        """What can be told before gigabytes are hashed.

        Raises:
            ConfigError: threads that there are no cores for, or options that exclude each other.
            DeviceError: the device is not there, or lacks what it needs.
        """
        check_device(self.device)
        if is_gpu(self.device):
            require_gpu(self.device)
        thread_count(self.threads)
        if self.copy and self.release_weights:
            raise ConfigError("copy and release_weights are True; what is copied cannot be read again: leave out one")
