"""ONNX Runtime, which the base install leaves to one of two extras: both wheels write into the same folder."""

from salmonrun.runtime.errors import MissingExtraError

try:
    import onnxruntime as onnxruntime
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise MissingExtraError(
        "ONNX Runtime is not installed: pip install 'salmonrun[cpu]', or on an NVIDIA GPU 'salmonrun[cuda]', never both"
    ) from error
