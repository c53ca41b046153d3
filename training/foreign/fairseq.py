"""fairseq's .pt files without fairseq: the objects in their settings become inert stand-ins, of which no code runs.

torch.load still reads with weights_only=True; it is made to take `Inert` for these names. Files that name
anything else are refused.
"""

from typing import Any


class Inert:
    """In place of an object of a foreign class: it keeps what it was made of, and does nothing."""

    state: Any

    def __new__(cls, *_: object) -> "Inert":
        """Made of any arguments."""
        inert = super().__new__(cls)
        inert.state = None
        return inert

    def __setstate__(self, state: object) -> None:
        self.state = state


def _plain_dict(*_: object) -> dict[Any, Any]:
    """In place of a defaultdict: no factory is kept."""
    return {}


# As what OmegaConf 2.0 to 2.4 pickle a config, numpy a scalar (the best metric so far), and old fairseq its options.
_NAMES = (
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Enum", "Float", "Integer", "String")),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
    *("typing.Any", "argparse.Namespace"),
)
# For load_pickle.
STAND_INS = (*((Inert, name) for name in _NAMES), (_plain_dict, "collections.defaultdict"))


def plain(value: Any) -> Any:
    """Settings as dicts, lists and values: what an OmegaConf container or node, or a namespace, holds."""
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, dict) else {}
        return plain(next((state[key] for key in ("_content", "_val") if key in state), state))
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value
