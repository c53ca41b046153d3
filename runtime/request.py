"""What is asked of the LLM: prompt, settings, stop rules."""

from dataclasses import dataclass

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.prompt import PromptIds
from salmonrun.runtime.search import StopRules


@dataclass(frozen=True)
class Request:
    """A checked request; see `Model.request`. The audio comes apart: many may be asked the same."""

    prompt: PromptIds
    config: GenerationConfig
    stop: StopRules
