"""The way in from outside: a plugin built as a wheel, installed and used; and what is said of broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import siftune
from siftune import UserError
from siftune.methods import found, load

from .distributions import write

SHORTEST = Path(__file__).parent / "third_party" / "siftune-shortest"
Shell = Callable[..., subprocess.CompletedProcess[str]]


def pip(*words: Any) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of siftune-shortest was installed."""
    place = tmp_path_factory.mktemp("third-party")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", place, SHORTEST)
    wheels = sorted(place.glob("*.whl"))
    assert [wheel.name for wheel in wheels] == ["siftune_shortest-0.3-py3-none-any.whl"]
    pip("install", "--no-deps", "--no-index", "--target", place / "site", wheels[0])
    return place / "site"


def test_a_wheel_from_outside_is_used_in_a_run(site: Path, pool_file: Path, tmp_path: Path, shell: Shell) -> None:
    out = tmp_path / "run"
    words = ("run", pool_file, "--out", out, "select", "shortest", "--at-least", "12", "--budget", "3")
    done = shell(*words, env={"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line)["output"] for line in (out / "selected.jsonl").read_text().splitlines()]
    every = [json.loads(line)["output"] for line in pool_file.read_text().splitlines()]
    assert [len(text) for text in kept] == sorted(len(text) for text in every if len(text) >= 12)[:3]
    manifest = json.loads((out / "manifest.json").read_text())
    assert "siftune-shortest" in json.dumps(manifest)


def test_it_is_listed_and_passes_its_check(site: Path, shell: Shell) -> None:
    env = {"PYTHONPATH": str(site)}
    assert "select    shortest" in shell("methods", "select", env=env).stdout
    assert "siftune-shortest 0.3: select shortest" in shell("plugins", env=env).stdout
    checked = shell("check", "shortest", "--at-least", "2", env=env)
    assert checked.returncode == 0, checked.stderr
    assert "select shortest is Shortest of siftune-shortest 0.3" in checked.stdout
    assert "--at-least" in shell("run", "x.jsonl", "select", "shortest", "--help", env=env).stdout


# ---- broken ones: the sentence names the distribution and what to do ----

SCORER = """
class Count(Method):
    "Counts."

    @hookimpl
    def score(self, samples):
        return [1.0 for _ in samples]
"""


def install(site: Path, monkeypatch: pytest.MonkeyPatch, *packages: tuple[str, str, dict[str, dict[str, str]]]) -> None:
    for at, (package, code, entries) in enumerate(packages):
        monkeypatch.syspath_prepend(write(site / str(at), package, code, entries))


def test_two_distributions_that_claim_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"siftune.score": {"clash": "Count"}}
    install(tmp_path, monkeypatch, ("outside-one", SCORER, entries), ("outside-two", SCORER, entries))
    said = r"clash is provided by both outside-\w+ 0\.1 and outside-\w+ 0\.1; remove one: pip uninstall"
    with pytest.raises(UserError, match=said):
        load("score", "clash")
    with pytest.raises(UserError, match=said):
        found("score")
    # the other hooks go on working
    assert "random" in found("select")


def test_one_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"siftune.score": {"unimportable": "Count"}}
    install(tmp_path, monkeypatch, ("outside-broken", "import a_module_that_nobody_has", entries))
    said = r"unimportable: outside-broken 0\.1 could not be imported: ModuleNotFoundError: .*nobody_has"
    with pytest.raises(UserError, match=said):
        load("score", "unimportable")
    assert "unimportable" in found("score")  # listing imports nothing


def test_one_whose_class_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, ("outside-renamed", SCORER, {"siftune.score": {"renamed": "Counts"}}))
    with pytest.raises(
        UserError,
        match=r"score renamed: outside-renamed 0\.1 could not be imported: AttributeError: .*Counts",
    ):
        load("score", "renamed")


def test_one_that_is_no_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "class Plain:\n    pass\n\ndef function(samples):\n    return samples\n"
    install(
        tmp_path,
        monkeypatch,
        ("outside-plain", code, {"siftune.score": {"plain": "Plain", "function": "function"}}),
    )
    for name, thing in (("plain", "Plain"), ("function", "function")):
        said = rf"score {name}: outside_plain:{thing} of outside-plain 0\.1 is not a subclass of siftune\.Method"
        with pytest.raises(UserError, match=said):
            load("score", name)


def test_one_without_hookimpl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = SCORER.replace("    @hookimpl\n", "")
    install(tmp_path, monkeypatch, ("outside-unmarked", code, {"siftune.score": {"unmarked": "Count"}}))
    said = r"outside-unmarked 0\.1 does not implement the hook score; put @hookimpl above its method score"
    with pytest.raises(UserError, match=said):
        load("score", "unmarked")


def test_one_in_the_wrong_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, ("outside-group", SCORER, {"siftune.select": {"misplaced": "Count"}}))
    with pytest.raises(
        UserError,
        match=r"does not implement the hook select; it implements score, so its group is siftune\.score",
    ):
        load("select", "misplaced")


def test_one_with_a_misspelt_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
    code = SCORER + "\n    @hookimpl\n    def sroce(self, samples):\n        return None\n"
    only = SCORER.replace("def score", "def sroce").replace("Count", "Only")
    entries = {"siftune.score": {"misspelt": "Count", "only": "Only"}}
    install(tmp_path, monkeypatch, ("outside-misspelt", code + only, entries))
    with pytest.raises(UserError, match=r"score only: Only of outside-misspelt 0\.1 does not implement the hook score"):
        load("score", "only")
    with pytest.raises(Exception, match="sroce") as caught:
        siftune.apply(load("score", "misspelt")(), rows)
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "score misspelt" in told and "outside-misspelt 0.1" in told


def test_a_reserved_word_as_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = SCORER.replace('"Counts."', '"Counts."\n\n    budget: Annotated[int, "rows"] = 1')
    install(tmp_path, monkeypatch, ("outside-reserved", code, {"siftune.score": {"reserved": "Count"}}))
    with pytest.raises(UserError, match=r"outside-reserved 0\.1 could not be imported: .*budget cannot be an option"):
        load("score", "reserved")


def test_a_mistake_is_one_line_for_who_types(tmp_path: Path, pool_file: Path, shell: Shell) -> None:
    site = write(
        tmp_path / "site",
        "outside-shell",
        "import nothing_of_that_name",
        {"siftune.score": {"unshelled": "Count"}},
    )
    done = shell("run", pool_file, "--out", tmp_path / "run", "score", "unshelled", env={"PYTHONPATH": str(site)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: score unshelled: outside-shell 0.1 could not be imported")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_folder_is_left_as_it_was() -> None:
    assert sorted(os.listdir(SHORTEST)) in (
        ["pyproject.toml", "siftune_shortest.py"],
        ["__pycache__", "pyproject.toml", "siftune_shortest.py"],
    )
