"""The way in for plugins: a new one from templates/plugin, or a known one installed by its method's name."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

import siftune

from . import registry, shipped
from .errors import UserError, suggestion
from .hookspecs import HOOKS
from .methods import found

PREFIX = "siftune-"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

# how a chain with the new method looks: what its hook needs stands before it
EXAMPLES = {
    "embed": "siftune run pool.jsonl embed {} cluster kmeans",
    "cluster": "siftune run pool.jsonl embed sentence cluster {}",
    "score": "siftune run pool.jsonl score {0} select top --by {0} --budget 5%",
    "reflect": "siftune run pool.jsonl reflect {}",
    "select": "siftune run pool.jsonl select {} --budget 5%",
    "train": "siftune run pool.jsonl train {} --model nano",
    "evaluate": "siftune run evaluate {} --model nano",
}


def method_name(name: str) -> str:
    """What the method of a new plugin is called: its name without the prefix of every plugin's package."""
    return name.strip().lower().replace("_", "-").removeprefix(PREFIX)


def new_plugin(name: str, hook: str, into: Path) -> Path:
    """Write a plugin that works into a new folder, and give the folder.

    Raises UserError for a name that no package can have or that is taken, and for a folder that exists.
    """
    method = method_name(name)
    _check_name(name, method, hook)
    folder = into / method
    if folder.exists():
        raise UserError(f"{folder} is there already; take another name, or another place: --into FOLDER")
    module = (PREFIX + method).replace("-", "_")
    values = {
        "name": method, "hook": hook, "package": PREFIX + method,
        "module": module, "kind": _class_name(method),
        "siftune": siftune.__version__.rpartition(".")[0], "example": EXAMPLES[hook].format(method),
    }  # fmt: skip
    templates = shipped.path("templates") / "plugin"
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}.py": f"hooks/{hook}.py",
        f"test_{module}.py": "test_plugin.py",
    }
    texts = {name: (templates / source).read_text(encoding="utf-8") for name, source in files.items()}
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(Template(text).substitute(values), encoding="utf-8")
    return folder


def _check_name(name: str, method: str, hook: str) -> None:
    if hook not in HOOKS:
        raise UserError(f"no hook {hook!r}.{suggestion(hook, HOOKS)}")
    if not NAME.fullmatch(method):
        raise UserError(
            f"{name!r} cannot name a plugin; take lower-case letters, digits and hyphens, such as shortest"
        )
    if method in HOOKS:
        raise UserError(f"{method!r} is the name of a hook; take a noun for the method, such as shortest")
    here = found(hook).get(method)
    known = registry.methods(hook).get(method)
    if here is not None or known is not None:
        taken = here.source if here is not None else known.package if known is not None else ""
        raise UserError(f"{hook} {method} is a method of {taken} already; take another name")
    if PREFIX + method in registry.packages():
        raise UserError(f"{PREFIX + method} is a known package already; take another name")


def _class_name(method: str) -> str:
    words = "".join(word.capitalize() for word in method.split("-"))
    # `class None` is no Python, and `class Method(Method)` hides what the module imports
    return f"{words}Method" if keyword.iskeyword(words) or words in siftune.__all__ else words


def install(name: str, dry_run: bool = False) -> list[str]:
    """Install the package that brings a method ("ifd", "score/ifd") or that is named itself; from its folder
    where this is a checkout. Says the command before it runs it, and gives it.

    Raises UserError for a name that is unknown or means two packages, and where the installation fails.
    """
    package, brought = _package(name)
    label = ", ".join(f"{one.hook} {one.name}" for one in brought)
    if all(one.name in found(one.hook) for one in brought):
        print(f"{package} is installed already; it brings {label}")
        return []
    source = shipped.path("registry.toml").parent / brought[0].source
    place = ["-e", str(source)] if brought[0].source and (source / "pyproject.toml").is_file() else [package]
    command = [*_installer(), *place]
    print(f"{package} brings {label}\n{shlex.join(command)}", flush=True)
    if not dry_run and subprocess.run(command, check=False).returncode:
        raise UserError(f"{package} could not be installed; what went wrong is said above")
    return command


def _package(name: str) -> tuple[str, Sequence[registry.Known]]:
    """The package that a name means, with the methods that it brings."""
    by_package = registry.packages()
    if name in by_package:
        return name, by_package[name]
    hook, _, method = name.rpartition("/")
    every = [one for methods in by_package.values() for one in methods]
    meant = [one for one in every if one.name == method and hook in ("", one.hook)]
    packages = {one.package for one in meant}
    if len(packages) > 1:
        several = " or ".join(f"siftune install {one.hook}/{one.name}" for one in meant)
        raise UserError(f"{name!r} is a method of several hooks; write {several}")
    if not packages:
        names = [*by_package, *(f"{one.hook}/{one.name}" if hook else one.name for one in every)]
        raise UserError(f"no known method or package {name!r}.{suggestion(name, names)} See: siftune methods")
    package = packages.pop()
    return package, by_package[package]


def _installer() -> list[str]:
    """pip of this Python, or uv where an environment was made without pip."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install"]
    uv = shutil.which("uv")
    if uv is None:
        raise UserError(
            f"{sys.executable} has no pip, and there is no uv; write: {sys.executable} -m ensurepip"
        )
    return [uv, "pip", "install", "--python", sys.executable]
