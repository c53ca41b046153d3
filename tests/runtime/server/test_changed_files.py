"""A bundle that changes under the server: requests are refused, and whoever asks for its health is told."""

import json
import os
import shutil
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from salmonrun.runtime import Engine
from tests.helpers.servers import Running, serving

openai = pytest.importorskip("openai")


def health(server: Running) -> tuple[int, str]:
    try:
        with urlopen(f"{server.url}/health") as answer:
            return answer.status, json.load(answer)["status"]
    except HTTPError as error:
        return error.code, json.load(error)["status"]


@pytest.mark.parametrize("copy", [False, True])
def test_a_file_that_is_cut(tiny_bundle: Path, tmp_path: Path, speech: Path, copy: bool) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with serving(Engine.load(bundle, copy=copy)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def ask() -> str:
            return str(client.audio.transcriptions.create(file=speech, model="", extra_body={"max_new_tokens": 3}).text)

        before = ask()
        assert health(server) == (200, "ready")
        os.truncate(bundle / "llm" / "embed_tokens.bin", 0)
        if copy:
            assert ask() == before
            assert health(server) == (200, "ready")
            return
        for call in (ask, client.models.list):
            with pytest.raises(openai.InternalServerError, match=r"embed_tokens\.bin was changed in place") as refused:
                call()
            assert (refused.value.status_code, refused.value.code) == (503, "bundle_changed")
        assert health(server) == (503, "changed")
