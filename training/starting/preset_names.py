"""What the presets are called. Read by the command line, too: importing it imports no PyTorch."""

from typing import Literal, get_args

PresetName = Literal[
    "tiny", "demo", "salmonn-7b", "salmonn-13b", "nota-3b", "v3-turbo-llama-1b", "v3-turbo-llama-1b-streaming"
]
PRESET_NAMES: tuple[PresetName, ...] = get_args(PresetName)
