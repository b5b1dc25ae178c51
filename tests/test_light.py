"""The command line answers at once: nothing heavy is imported before a hook runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from siftune import HOOKS
from siftune.methods import found, installed
from siftune.models import SHIPPED
from siftune.testing import HEAVY

COMMAND = """
import sys
from siftune.__main__ import main
try:
    main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
"""
MODULES = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
"""
COUNT = f"""
import json
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


def pulled(code: str, *words: str) -> list[str]:
    """Which of the heavy ones a fresh interpreter has imported in the end."""
    done = subprocess.run([sys.executable, "-c", code + COUNT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heavy: list[str] = json.loads(done.stdout.splitlines()[-1])
    return heavy


@pytest.mark.parametrize(
    "words",
    [
        "--help", "--version", "methods", "methods score", "plugins", "doctor", "run --help",
        "run x.jsonl score --help", "run x.jsonl score ifd --help", "run x.jsonl train lora --help",
        "store ls",
    ],
)  # fmt: skip
def test_a_question_imports_nothing_heavy(words: str) -> None:
    assert pulled(COMMAND, *words.split()) == []


@pytest.mark.parametrize("package", sorted({one.package for hook in HOOKS for one in found(hook).values()}))
def test_the_methods_of_a_package_import_nothing_heavy(package: str) -> None:
    methods = [one for hook in HOOKS for one in found(hook).values() if one.package == package]
    modules = sorted({one.entry.module for one in methods})
    if package == "siftune-toys":
        pytest.skip("toys are no installed package")
    assert pulled(MODULES, *modules) == []


def test_shipped_models_are_named_without_heavy_imports() -> None:
    assert pulled(MODULES, *sorted({entry.module for entry, _ in installed(SHIPPED)})) == []
