"""evaluate $name: figures of the run's model, and a row for each test item."""

from __future__ import annotations

from typing import Annotated

from siftune import Evaluation, Method, Sample, hookimpl, models, prompts

PAIRS = [("What colour is the sky by day?", "Blue."), ("How many legs does a spider have?", "Eight.")]


class $kind(Method):
    """How surprising the model finds the right answers, in nats per token."""

    requires = ("model",)
    uses = ("prompts", "readers")  # a change of these computes the figures anew

    model: Annotated[str | None, "causal LM to measure"] = None
    template: Annotated[str | None, "prompt template"] = None

    @hookimpl
    def evaluate(self) -> Evaluation:
        assert self.model is not None
        reader = models.reader(self.model)
        template = prompts.template(self.template, reader.tokenizer)
        pairs = [template.pair(Sample.of(question, answer)) for question, answer in PAIRS]
        losses = [float(one.mean()) for one in reader.token_losses(reader.encode(pairs, template.special))]
        items = [{"question": pair[0], "loss": loss} for pair, loss in zip(PAIRS, losses, strict=True)]
        return Evaluation({"loss": sum(losses) / len(losses)}, items)
