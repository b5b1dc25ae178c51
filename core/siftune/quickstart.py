"""The whole chain on the bundled pool, with a random selection of the same size beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from .api import Run
from .recipe import Defaults, Recipe, Step, find
from .runfolder import next_free, user_path

POOL = Path(__file__).with_name("quickstart_pool.jsonl.gz")


def recipe(teacher: str | None = None, teacher_model: str | None = None, device: str | None = None) -> Recipe:
    """The shipped recipe on the bundled pool; with a teacher, what was selected is rewritten before training."""
    whole = Recipe.read(find("quickstart"))
    told = replace(whole.run, teacher=teacher, teacher_model=teacher_model, device=device)
    steps = whole.steps
    if teacher:
        at = next(i for i, step in enumerate(steps) if step.hook == "train")
        steps = (*steps[:at], Step("reflect", "response"), *steps[at:])
    return replace(whole, steps=steps, run=told, data=replace(whole.data, path=(str(POOL),)))


def start(
    *,
    carry_out: Callable[..., Run],
    conclude: Callable[..., None],
    out: Path | None,
    store: Path | None,
    teacher: str | None,
    teacher_model: str | None,
    device: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Carry out the recipe, measure the untrained student too, and say what came out, without a claim."""
    folder = out if out is not None else next_free("quickstart")
    chain = recipe(teacher, teacher_model, device)
    if not quiet and not as_json:
        click.echo(
            f"2,000 bundled rows: {' -> '.join(step.label for step in chain.steps)}\n"
            "then again with a random selection, and the untrained student measured beside both\n"
        )
    shared: dict[str, Any] = {"store": store, "quiet": quiet, "as_json": as_json}
    untrained = Recipe(
        tuple(step for step in chain.steps if step.hook == "evaluate"),
        run=Defaults(seed=chain.run.seed, model=chain.run.model, device=device),
        name="untrained",
    )
    run = carry_out(chain, out=folder, **shared)
    before = carry_out(untrained, out=folder / "arms" / "untrained", **shared)
    run.arms["untrained"] = before
    if as_json:
        conclude(run, as_json=True)
        return
    if not teacher and not quiet:
        click.echo(
            "\nreflect did not run: a teacher would rewrite the selected responses, and the student train on both.\n"
            "With one:\n"
            "  siftune quickstart --teacher http://localhost:8000/v1 --teacher-model NAME\n"
            "  siftune quickstart --teacher vllm:Qwen/Qwen2.5-7B-Instruct"
        )
    _show(run, before)
    where = user_path(folder)
    click.echo(f"\nselection  {where}/selected.jsonl ({len(run.selected)} rows)")
    click.echo(f"model      {where}/{_trained(run)}/model")
    click.echo(f"results    {where}/evaluation.json   {where}/report.html")
    click.echo(f"why a row was kept or not:  siftune explain {where} 7")


def _trained(run: Run) -> str:
    return next(done.planned.folder for done in run.state.done if done.model is not None)


def _show(run: Run, before: Run) -> None:
    """Figures of the untrained student and of both selections, with their intervals."""
    columns = {"before training": before, "selected": run, "random": run.arms["random"]}
    results = {name: next(iter(one.results.values())) for name, one in columns.items()}
    figures = list(dict.fromkeys(figure for metrics in results.values() for figure in metrics))
    width = max(map(len, figures)) + 2
    click.echo(f"\n{'':<{width}}" + "".join(f"{name:<26}" for name in columns))
    for figure in figures:
        cells = [_cell(results[name].get(figure)) for name in columns]
        click.echo(f"{figure:<{width}}" + "".join(f"{cell:<26}" for cell in cells))
    for name in ("selected", "random"):
        value, low, high = lowered(columns[name], before)
        less = f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
        click.echo(f"{name} less before training, bits per byte over all bytes, each response beside itself: {less}")
    click.echo(
        f"\n{len(run.selected)} rows are few, and IFD and likelihood share a signal: "
        "these figures show that the chain runs, not that a selection is better."
    )


def lowered(run: Run, before: Run) -> tuple[float, float, float]:
    """Bits per byte of the held-out responses less those before training, with a 95% interval over responses.

    Over all bytes together, where `bits_per_byte` of the evaluation is the mean of the sources' own. Both models read
    the same responses, so what is resampled is the difference: it is far surer than either figure.
    """
    after, earlier = ({item["id"]: item for item in _measured(one)} for one in (run, before))
    ids = sorted(after.keys() & earlier.keys())
    was = np.array([earlier[one]["loss"] for one in ids])
    size = was / np.array([earlier[one]["bits_per_byte"] for one in ids])  # in bytes, times the nats of a bit
    change = np.array([after[one]["loss"] for one in ids]) - was
    times = np.random.default_rng(0).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), 4000)
    low, high = np.percentile(times @ change / (times @ size), [2.5, 97.5])
    return float(change.sum() / size.sum()), float(low), float(high)


def _measured(run: Run) -> list[Mapping[str, Any]]:
    """Items of which it is known what their bytes cost."""
    items = [item for done in run.state.done if done.evaluation for item in done.evaluation.items]
    return [item for item in items if item.get("bits_per_byte") is not None]


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        interval = f" [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else ""
        return f"{value['value']:.3f}{interval}" if "value" in value else ""
    return f"{value:.3f}" if isinstance(value, float) else str("" if value is None else value)
