"""`evaluate lm-eval`: tasks of the language model evaluation harness, run in this process."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from siftune import Context, Evaluation, Method, UserError, hookimpl

from . import naming

SEED = 1234  # lm-eval's own, for few-shot examples: the same for all models that are compared


class LMEval(Method):
    """Tasks of the language model evaluation harness; without --tasks a small bundled group that needs no
    network."""

    requires: ClassVar = ("model",)
    uses: ClassVar = ("prompts", "readers", "intervals")

    model: Annotated[str | None, "causal LM to evaluate"] = None
    tasks: Annotated[list[str], "task or group; several, or with commas (the bundled group, unless said)"] = (
        field(default_factory=list)
    )
    include_path: Annotated[Path | None, "folder with YAML tasks of your own"] = None
    limit: Annotated[int | None, "only so many items of each task"] = None
    num_fewshot: Annotated[int | None, "examples before each item (the task's own number, unless said)"] = (
        None
    )
    batch_size: Annotated[int | Literal["auto"], "requests at once"] = 8
    apply_chat_template: Annotated[bool, "ask in the model's chat template"] = False
    template: Annotated[str | None, "prompt template of the bundled group"] = None
    dtype: Annotated[Literal["float32", "bfloat16"] | None, "precision of the model"] = None
    device: Annotated[str | None, "where to compute"] = None

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("num_fewshot", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ValueError(f"--{name.replace('_', '-')} is at least {least}")
        if self.include_path is not None and not self.tasks:
            raise ValueError("--include-path only says where tasks lie; name them with --tasks")
        if self.apply_chat_template and any(name.startswith("quickstart") for name in self.names()):
            raise ValueError(
                "--apply-chat-template is for other tasks; the bundled group is asked with --template"
            )

    def names(self) -> list[str]:
        """Tasks and groups by name."""
        named = [name.strip() for given in self.tasks for name in given.split(",")]
        return list(dict.fromkeys(name for name in named if name)) or ["quickstart"]

    def needs(self) -> list[str]:
        """No columns; but this is asked before the run, when a misspelt task costs nothing."""
        naming.check(tuple(self.names()), self.include_path)
        return []

    @hookimpl
    def evaluate(self, run: Context) -> Evaluation:
        from siftune import models, prompts

        from . import answering, figures

        if not self.tasks:
            run.say(
                "no --tasks: taking the bundled group quickstart (which response fits, and what one costs)"
            )
        assert self.model is not None
        reader = models.reader(self.model, dtype=self.dtype, device=self.device)
        if self.apply_chat_template and not reader.tokenizer.chat_template:
            raise UserError(f"evaluate lm-eval: the tokenizer of {self.model} has no chat template to apply")
        template = prompts.template(self.template, reader.tokenizer)
        with answering.quiet():
            loaded = self._load(template)
            found = self._ask(loaded, answering.model(reader, template.special, self.batch_size, run.advance))
        return Evaluation(figures.metrics(found), figures.items(found))

    def _load(self, template: Any) -> dict[str, Any]:
        """The tasks, with their data."""
        from siftune import Sample

        def written(prompt: str, response: str) -> tuple[str, str]:
            one = template.pair(Sample.of(prompt, response))
            return one.text[: one.start], one.text[one.start : one.end]

        known = naming.manager(self.include_path, everything=False, written=written)
        if any(name not in known.all_tasks for name in self.names()):
            naming.check(tuple(self.names()), self.include_path)
            known = naming.manager(self.include_path, everything=True, written=written)
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in self.names():
            try:
                one = known.load([name])
            except OSError as error:  # offline, unknown to the hub, or a file that is not there
                said = str(error).strip().splitlines()[0]
                raise UserError(
                    f"evaluate lm-eval: the data of the task {name!r} could not be had: {said}. "
                    "Where there is no network, describe data that lies here in a YAML task: --include-path"
                ) from error
            for kind, members in loaded.items():
                members.update(one.get(kind, {}))
        for name, task in loaded["tasks"].items():
            self._settle(name, task)
        return loaded

    def _settle(self, name: str, task: Any) -> None:
        """What simple_evaluate would set, which besides reseeds every generator and looks for git."""
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"evaluate lm-eval: the task {name!r} would run code that the model wrote; drop it"
            )
        own = task.get_config("num_fewshot")
        if own is None or (self.num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=self.num_fewshot or 0)
        task.set_fewshot_seed(seed=SEED)

    def _ask(self, loaded: dict[str, Any], model: Any) -> dict[str, Any]:
        from lm_eval.evaluator import evaluate

        found: dict[str, Any] = evaluate(
            lm=model,
            task_dict=loaded,
            limit=self.limit,
            bootstrap_iters=1000,
            apply_chat_template=self.apply_chat_template,
            fewshot_as_multiturn=self.apply_chat_template,
        )
        return found
