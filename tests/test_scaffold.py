"""`siftune new plugin` writes plugins that work; `siftune install` knows which package to ask for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flit_core.wheel import make_wheel_in
from siftune import HOOKS, UserError, registry, scaffold
from siftune.methods import found
from siftune.scaffold import install, method_name, new_plugin

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A new plugin for every hook."""
    into = tmp_path_factory.mktemp("new")
    return {hook: new_plugin(f"first-{hook}r", hook, into) for hook in HOOKS}


@pytest.mark.parametrize("hook", HOOKS)
def test_what_it_writes(folders: dict[str, Path], hook: str) -> None:
    folder, name = folders[hook], f"first-{hook}r"
    module = f"siftune_first_{hook}r"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["README.md", "pyproject.toml", f"{module}.py", f"test_{module}.py"]
    )
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"siftune-{name}" and project["requires-python"] == ">=3.11"
    assert project["entry-points"] == {f"siftune.{hook}": {name: f"{module}:First{hook.capitalize()}r"}}
    for path in folder.iterdir():
        assert "$" not in path.read_text(), path
    assert f"siftune check {hook}/{name}" in (folder / "README.md").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_first_method_is_short(folders: dict[str, Path], hook: str) -> None:
    assert len((folders[hook] / f"siftune_first_{hook}r.py").read_text().splitlines()) < 30


@pytest.mark.parametrize(
    "hooks", [HOOKS[:5], pytest.param(HOOKS[5:], marks=pytest.mark.slow)], ids=["without a model", "with one"]
)
def test_every_new_plugin_passes_its_own_test(folders: dict[str, Path], hooks: tuple[str, ...], tmp_path: Path) -> None:
    """Each is built, unpacked where Python finds it, and its test run, as its author would."""
    site, chosen = tmp_path / "site", [folders[hook] for hook in hooks]
    for folder in chosen:
        zipfile.ZipFile(make_wheel_in(folder / "pyproject.toml", tmp_path).file).extractall(site)
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "--import-mode=importlib"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *chosen],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(hooks)} passed" in done.stdout


def clean(*tool: str) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


def test_what_it_writes_is_clean(folders: dict[str, Path]) -> None:
    files = [str(path) for folder in folders.values() for path in folder.glob("*.py")]
    clean("ruff", "check", "--no-cache", "--config", "pyproject.toml", *files)


@pytest.mark.slow
def test_what_it_writes_is_typed(folders: dict[str, Path]) -> None:
    files = [str(path) for folder in folders.values() for path in folder.glob("siftune_*.py")]
    clean("mypy", "--cache-dir", os.devnull, "--config-file", "pyproject.toml", *files)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("shortest", "shortest"),
        ("siftune-shortest", "shortest"),
        ("My_Scorer", "my-scorer"),
        ("a1-b2", "a1-b2"),
    ],
)
def test_a_name_with_or_without_the_prefix(name: str, method: str, tmp_path: Path) -> None:
    assert method_name(name) == method
    folder = new_plugin(name, "select", tmp_path)
    assert folder == tmp_path / method
    assert f'name = "siftune-{method}"' in (folder / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "name", ["", "1st", "two words", "a--b", "-a", "a-", "../away", "a/b", "a.b", "ünder", "siftune-", "a\nb"]
)
def test_a_name_that_no_package_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot name a plugin; take lower-case letters, digits and hyphens"):
        new_plugin(name, "score", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "hook", "said"),
    [
        ("score", "score", "'score' is the name of a hook"),
        ("length", "score", "score length is a method of siftune-baselines.* already"),
        ("baselines", "score", "siftune-baselines is a known package already"),
        ("other", "scroe", "no hook 'scroe'. Did you mean 'score'"),
    ],
)
def test_a_name_that_is_taken(name: str, hook: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        new_plugin(name, hook, tmp_path)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shortest").mkdir()
    with pytest.raises(UserError, match=r"shortest is there already; .*--into"):
        new_plugin("shortest", "select", tmp_path)
    assert not list((tmp_path / "shortest").iterdir())


@pytest.mark.parametrize("name", ["none", "method", "selection"])
def test_a_class_hides_nothing(name: str, tmp_path: Path) -> None:
    folder = new_plugin(name, "select", tmp_path)
    text = (folder / f"siftune_{name}.py").read_text()
    compile(text, name, "exec")
    assert f"class {name.capitalize()}Method(Method):" in text


# ---- install ----


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no plugin were installed."""
    monkeypatch.setattr(scaffold, "found", lambda hook: {})


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", ["ifd", "score/ifd", "siftune-ifd-scorer"])
def test_install_says_what_it_would_do(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = install(name, dry_run=True)
    assert command[-2:] == ["-e", str(ROOT / "plugins" / "ifd-scorer")] and "install" in command
    said = capsys.readouterr().out
    assert said.startswith("siftune-ifd-scorer brings score ifd, score r-ifd") and " ".join(command) in said


@pytest.mark.usefixtures("bare")
def test_outside_of_a_checkout_it_asks_the_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scaffold.shipped, "path", lambda name: tmp_path / name)
    assert install("kmeans", dry_run=True)[-1] == "siftune-kmeans-coreset"
    assert "-e" not in install("kmeans", dry_run=True)


@pytest.mark.usefixtures("bare")
def test_uv_where_there_is_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffold.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(scaffold.shutil, "which", lambda name: "/opt/uv")
    assert install("top", dry_run=True)[:5] == ["/opt/uv", "pip", "install", "--python", sys.executable]
    monkeypatch.setattr(scaffold.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="has no pip, and there is no uv"):
        install("top", dry_run=True)


@pytest.mark.usefixtures("bare")
def test_an_installation_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffold, "_installer", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(UserError, match="siftune-baselines could not be installed"):
        install("top")


def test_what_is_installed_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert "top" in found("select")
    assert install("select/top") == []
    assert "siftune-baselines is installed already; it brings score length" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("idf", "no known method or package 'idf'. Did you mean 'ifd'"),
        ("score/idf", "Did you mean 'score/ifd'"),
        ("select/ifd", "no known method or package 'select/ifd'"),
        ("siftune-baseline", "Did you mean 'siftune-baselines'"),
    ],
)
def test_an_unknown_name_is_told_its_neighbour(name: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        install(name)


def test_a_name_that_means_two_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [
        registry.Known("score", "twin", "siftune-one", ""),
        registry.Known("select", "twin", "siftune-two", ""),
    ]
    monkeypatch.setattr(registry, "packages", lambda: {one.package: [one] for one in known})
    with pytest.raises(
        UserError, match=r"several hooks; write siftune install score/twin or siftune install select/twin"
    ):
        install("twin")
