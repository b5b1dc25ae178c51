"""What the README says is what there is: its tables, its commands, its example of a plugin."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from siftune import registry
from siftune.hookspecs import HOOKS

from .conftest import row, write_jsonl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_the_table_of_methods_is_the_registry() -> None:
    section = README.partition("## Methods")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(\w+)` \| `([\w-]+)` \| (.+) \|$", section, re.MULTILINE)
    known = [(hook, name, one.summary) for hook in HOOKS for name, one in sorted(registry.methods(hook).items())]
    assert told == known


def test_the_two_commands_are_there_word_for_word() -> None:
    first = BLOCKS[0][1].splitlines()
    assert first == [
        "pip install -r requirements.txt && siftune quickstart",
        "pip install -r requirements.txt && pytest",
    ]


def test_the_example_of_a_plugin_is_short_and_works(tmp_path: Path, shell: Any) -> None:
    code = next(text for kind, text in BLOCKS if kind == "python" and "class Shouting" in text)
    assert len(code.splitlines()) < 25
    (tmp_path / "siftune_shouting.py").write_text(code)
    info = tmp_path / "siftune_shouting-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: siftune-shouting\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[siftune.score]\nshouting = siftune_shouting:Shouting\n")
    rows = [row(1), {"instruction": "a", "output": "LOUD"}, {"instruction": "b", "output": "123"}]
    data = write_jsonl(tmp_path / "pool.jsonl", rows)
    chain = ["score", "shouting", "select", "top", "--by", "shouting", "--budget", "1"]
    done = shell("run", data, "--out", tmp_path / "run", *chain, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "3 rows: 1 kept, 1 left out" in done.stdout
    assert "beta" in (tmp_path / "run" / "selected.jsonl").read_text()


def test_the_example_from_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(text for kind, text in BLOCKS if kind == "python" and "siftune.run" in text)
    write_jsonl(tmp_path / "pool.jsonl", [row(n) for n in range(40)])
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert len(scope["run"].selected) == 2


def test_the_example_of_a_recipe_can_be_read(tmp_path: Path) -> None:
    from siftune import Recipe, plan

    text = next(text for kind, text in BLOCKS if kind == "toml")
    (tmp_path / "recipe.toml").write_text(text)
    recipe = Recipe.read(tmp_path / "recipe.toml")
    plan.check(recipe, ["source"])
    assert [step.name for step in recipe.arm(recipe.arms[0]).steps][1] == "random"


def test_every_file_that_the_readme_links_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_commands_that_the_readme_names_exist() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "siftune", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in {word for _, text in BLOCKS for word in re.findall(r"^siftune (\w+)", text, re.MULTILINE)}:
        assert re.search(rf"^  {command}\b", listed, re.MULTILINE), command
