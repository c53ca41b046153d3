"""The golden published files, to be edited and converted."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.starting.convert import Conversion, convert_salmonn

Edit = Callable[[dict[str, Any]], object]


@dataclass
class Golden:
    """The golden files in a folder of their own, to be edited and converted."""

    folder: Path
    beats: Path | None

    @property
    def whisper(self) -> Path:
        return self.folder / "whisper"

    @property
    def llm(self) -> Path:
        return self.folder / "llm"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def edit(self, change: Edit) -> None:
        """Change the loaded .pth."""
        loaded = torch.load(self.folder / "salmonn.pth", weights_only=True)
        change(loaded)
        torch.save(loaded, self.folder / "salmonn.pth")

    def edit_model(self, change: Edit) -> None:
        """Change its state dict."""
        self.edit(lambda loaded: change(loaded["model"]))

    def edit_json(self, name: str, change: Edit) -> None:
        path = self.folder / name
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    def convert(self, **options: Any) -> Conversion:
        return convert_salmonn(
            self.folder / "salmonn.pth",
            self.out,
            whisper=self.whisper,
            audio_encoder=self.beats,
            llm=self.llm,
            **options,
        )

    def refuses(self, message: str, **options: Any) -> None:
        """Converting fails with `message` and leaves nothing behind."""
        before = set(self.folder.iterdir())
        with pytest.raises(CheckpointError, match=message):
            self.convert(**options)
        assert set(self.folder.iterdir()) == before
