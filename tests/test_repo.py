"""Every list agrees: folders, requirements, registry, entry points, and what the wheel holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from siftune import HOOKS, registry, shipped

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(
    path for path in (ROOT / "plugins").iterdir() if path.is_dir() and not path.name.startswith((".", "_"))
)
GROUPS = [f"siftune.{hook}" for hook in HOOKS]

each_plugin = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def project(folder: Path) -> Mapping[str, Any]:
    told: Mapping[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return told


def tracked() -> list[Path]:
    """Files that belong to the tree, new ones included."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    paths = [ROOT / name.decode() for name in done.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


# ---- plugins ----


@each_plugin
def test_a_plugin_is_a_distribution_of_its_own(folder: Path) -> None:
    told, name = project(folder), f"siftune-{folder.name}"
    module = name.replace("-", "_")
    assert told["name"] == name
    assert told["requires-python"] == ">=3.11"
    assert told["license"] == "Apache-2.0"
    assert told["readme"] == "README.md" and (folder / "README.md").is_file()
    assert (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file()
    assert any(requirement.partition(">")[0] == "siftune" for requirement in told["dependencies"])
    unbounded = [one for one in told["dependencies"] if not re.search(r">=|==", one)]
    assert not unbounded, "every dependency has a lower bound"
    others = [one for one in told["dependencies"] if one.startswith("siftune-")]
    assert not others, "a plugin stands without the others"


@each_plugin
def test_a_plugin_has_tests_of_its_own_name(folder: Path) -> None:
    tests = [path.name for path in folder.glob("test_*.py")]
    assert tests, "test_<name>.py is missing"
    everywhere = [path.name for other in (*FOLDERS, ROOT / "tests") for path in other.glob("test_*.py")]
    assert [name for name in tests if everywhere.count(name) > 1] == []


@each_plugin
def test_entry_points_lead_somewhere(folder: Path) -> None:
    """To a file of the plugin; that the class is right, `conforms` looks at."""
    for group, entries in project(folder)["entry-points"].items():
        assert group in (*GROUPS, "siftune.models", "siftune"), f"{group} is no group"
        for name, target in entries.items():
            module = target.partition(":")[0].replace(".", "/")
            there = (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file()
            assert there, f"{name} = {target}: there is no such module"
            assert module.partition("/")[0] == f"siftune_{folder.name.replace('-', '_')}"


@each_plugin
def test_what_is_installed_is_what_the_folder_says(folder: Path) -> None:
    told = project(folder)
    try:
        installed = distribution(told["name"])
    except PackageNotFoundError:
        pytest.fail(f"{told['name']} is not installed: pip install -r requirements.txt")
    there = {(one.group, one.name, one.value) for one in installed.entry_points}
    wanted = {(group, *entry) for group, entries in told["entry-points"].items() for entry in entries.items()}
    assert there == wanted, f"install it again: pip install -e plugins/{folder.name}"


def test_requirements_name_every_plugin() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    editable = [line.split(maxsplit=1)[1] for line in lines if line.startswith("-e ")]
    assert re.sub(r"\[.*\]", "", editable[0]) == "."
    assert editable[1:] == [f"plugins/{folder.name}" for folder in FOLDERS]


def test_the_registry_names_every_method() -> None:
    provided = {
        (group.removeprefix("siftune."), name, project(folder)["name"], f"plugins/{folder.name}")
        for folder in FOLDERS
        for group, entries in project(folder)["entry-points"].items()
        if group in GROUPS
        for name in entries
    }
    official = {
        (one.hook, one.name, one.package, one.source)
        for methods in registry.everything().values() for one in methods.values() if one.status == "official"
    }  # fmt: skip
    assert official == provided


def test_the_registry_is_fit_to_print() -> None:
    assert list(registry.everything()) == list(HOOKS), "hooks in their order"
    for one in (one for methods in registry.everything().values() for one in methods.values()):
        assert 0 < len(one.summary) < 80 and "\n" not in one.summary and not one.summary.endswith("."), one
        assert one.status in ("official", "community") and one.source
        assert not one.paper or one.paper.startswith("https://")


# ---- the wheel of the core ----


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(place.glob("*.whl"))


def test_the_wheel_holds_the_core_and_what_ships(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {f"siftune/{path.name}" for path in (ROOT / "core" / "siftune").iterdir() if path.is_file()}
    templates = {f"siftune/{path.relative_to(ROOT)}" for path in (ROOT / "templates").rglob("*") if path.is_file()}
    templates = {name for name in templates if "__pycache__" not in name}
    assert code | templates | {"siftune/registry.toml"} <= names
    assert "siftune/templates/plugin/pyproject.toml" in names
    strays = [name for name in names if not name.startswith(("siftune/", "siftune-"))]
    assert not strays


def test_what_ships_is_found_inside_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import json, siftune; from pathlib import Path; from siftune import registry, scaffold, shipped; "
        "made = scaffold.new_plugin('inside', 'score', Path('new')); "
        "print(json.dumps([siftune.__file__, "
        "str(shipped.path('registry.toml')), str(shipped.path('templates')), "
        "len(registry.packages()), sorted(path.name for path in made.iterdir())]))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    module, known, templates, packages, made = json.loads(done.stdout)
    inside = tmp_path / "site" / "siftune"
    assert Path(module).parent == inside
    assert (Path(known), Path(templates)) == (inside / "registry.toml", inside / "templates")
    assert packages == len(registry.packages()) and "siftune_inside.py" in made


def test_in_a_checkout_the_files_at_the_top_count() -> None:
    assert shipped.path("registry.toml") == ROOT / "registry.toml"
    assert shipped.path("templates") == ROOT / "templates"


# ---- the tree ----


def test_no_path_of_this_machine_is_in_the_tree() -> None:
    """Where this checkout, this Python or this home happen to be is nobody else's business."""
    places = {ROOT, ROOT.parent, Path(sys.prefix), Path.home()}
    temporary = {Path("/"), Path(tempfile.gettempdir()), *Path(tempfile.gettempdir()).parents}
    told = [f"{place}/".encode() for place in places - temporary]
    found = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.stat().st_size < 5_000_000 and any(place in path.read_bytes() for place in told)
    ]
    assert not found


def test_no_leftovers_are_in_the_tree() -> None:
    names = [str(path.relative_to(ROOT)) for path in tracked()]
    bad = re.compile(r"(^|/)(utils|helpers|base|manager)\.py$|\.(pyc|orig|rej|swp|log)$|(^|/)(__pycache__|runs)/")
    assert [name for name in names if bad.search(name)] == []
