"""Every error salmonrun raises on purpose.

    SalmonrunError
    ├── AudioError (ValueError)             input that is not usable audio
    │   ├── AudioNotFoundError (FileNotFoundError)
    │   └── AudioTooLongError               more than the model's window
    ├── PromptError (ValueError)            no prompt, two prompts, a question missing
    │   └── UnknownTaskError (KeyError)
    ├── CapacityError (ValueError)          prompt + answer do not fit the KV cache
    ├── ConfigError (ValueError)            an option or a config key with a wrong value
    ├── BusyError (RuntimeError)            no room now; ask again later
    ├── DeadlineError (TimeoutError)        the deadline of a request passed
    ├── BundleError (ValueError)            a bundle that must not be run
    │   ├── BundleVersionError              written by a newer salmonrun
    │   ├── BundleIntegrityError            a file is missing, changed, linked or outside the folder
    │   └── BundleSignatureError            not signed by the key that was asked for
    ├── CheckpointError (ValueError)        a checkpoint with missing, extra or misshapen tensors
    ├── ClosedError (RuntimeError)          a recording asked about after its `with` block
    ├── DeviceError (RuntimeError)          the device asked for is not there
    ├── HubError (OSError)                  a repository that cannot be had from the Hugging Face Hub, or written to it
    ├── MissingExtraError (ImportError)     an optional dependency is not installed
    ├── NotFiniteError (ArithmeticError)    an encoder, the Q-Former or the LLM computes what is no number
    ├── ParityError (RuntimeError)          an exported bundle does not compute what the checkpoint does
    ├── ResourceError (OSError)             this machine has no memory, open files or disk space left
    └── SharingError (TypeError)            an engine, a stream or a recording is pickled or copied

Each message names the value, what was expected, and what to do.
"""


class SalmonrunError(Exception):
    """Base of all errors raised on purpose."""


class AudioError(SalmonrunError, ValueError):
    """The input is not usable audio."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """There is no such audio file."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class AudioTooLongError(AudioError):
    """The audio is longer than the model's window."""


class PromptError(SalmonrunError, ValueError):
    """The prompt is missing, ambiguous or incomplete."""


class UnknownTaskError(PromptError, KeyError):
    """The bundle has no prompt for this task."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class CapacityError(SalmonrunError, ValueError):
    """Prompt and answer will never fit into the KV cache."""


class BusyError(SalmonrunError, RuntimeError):
    """There is no room for it now, since others have it; later there will be."""


class DeadlineError(SalmonrunError, TimeoutError):
    """The deadline of a request has passed."""


class ConfigError(SalmonrunError, ValueError):
    """An option or a config key has a wrong value."""


class BundleError(SalmonrunError, ValueError):
    """The bundle must not be run."""


class BundleVersionError(BundleError):
    """The bundle was written in a format this version does not know."""


class BundleIntegrityError(BundleError):
    """A file of the bundle is missing, changed, linked or outside the folder."""


class BundleSignatureError(BundleError):
    """The bundle is not signed by who was expected to have signed it."""


class CheckpointError(SalmonrunError, ValueError):
    """The checkpoint has missing, extra or misshapen tensors, or does not match its config."""


class ClosedError(SalmonrunError, RuntimeError):
    """What is used was closed before."""


class DeviceError(SalmonrunError, RuntimeError):
    """The device asked for is not there."""


class HubError(SalmonrunError, OSError):
    """A repository of the Hugging Face Hub is not there, not open to this user, or cannot be reached."""


class MissingExtraError(SalmonrunError, ImportError):
    """An optional dependency is not installed."""


class NotFiniteError(SalmonrunError, ArithmeticError):
    """The output of an encoder, the Q-Former or the LLM holds NaN or infinity."""


class ParityError(SalmonrunError, RuntimeError):
    """An exported bundle does not compute what the checkpoint does."""


class ResourceError(SalmonrunError, OSError):
    """This machine has no memory, no open files or no disk space left for it."""


class SharingError(SalmonrunError, TypeError):
    """An engine, or what lives in one, can be neither pickled nor copied."""
