"""What of a sample is embedded: prompt, response, or both."""

from __future__ import annotations

from typing import Literal

from siftune import Sample

View = Literal["prompt", "response", "full"]


def text(sample: Sample, view: View) -> str:
    """The words of a sample, messages joined by a blank line: up to the last response, that one, or all."""
    messages = list(sample.messages)
    if view == "response":
        return sample.response
    if view == "prompt" and messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return "\n\n".join(message["content"] for message in messages if message["content"])
