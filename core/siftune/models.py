"""References to models: shipped names, folders and hub ids become a folder of safetensors, and its hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import UserError, suggestion
from .methods import installed
from .readers import Encoded, Reader, reader
from .samples import Sample

if TYPE_CHECKING:
    from .prompts import Template

__all__ = [
    "SHIPPED", "Encoded", "Reader", "check", "count_tokens", "digest", "folder", "reader", "tokenizer"
]  # fmt: skip

SHIPPED = "siftune.models"  # the entry-point group of models that ship inside a distribution

# what a model is read from: weights without code, tokenizer, configuration
READ = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
UNREAD = ("consolidated*", "original/*", "onnx/*", "openvino/*")
TOKENIZERS = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.*")
HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def shipped() -> dict[str, Any]:
    """Entry points of the models that ship with installed distributions, by name."""
    return {entry.name: entry for entry, _ in installed(SHIPPED)}


def folder(reference: str) -> Path:
    """The folder of a model: a shipped name, a local folder, or a hub id `org/name@revision`, downloaded.

    Raises UserError if there is no such model, with the nearest that there is.
    """
    reference = str(reference)
    names = shipped()
    if reference in names:
        return Path(names[reference].load()())
    local = Path(reference).expanduser()
    if local.exists():
        return _checked(local, reference)
    hub = HUB.fullmatch(reference) and not reference.startswith(".")
    if hub and not Path(reference.split("/")[0]).is_dir():
        return _downloaded(reference)
    raise UserError(f"no model {reference!r}: {_nearest(local, names)}")


def _checked(path: Path, reference: str) -> Path:
    if not path.is_dir():
        raise UserError(f"model {reference!r} is a file; name the folder that holds config.json")
    if not (path / "config.json").is_file():
        inside = [child.name for child in sorted(path.iterdir()) if (child / "config.json").is_file()]
        hint = f" Did you mean {str(path / inside[0])!r}?" if inside else ""
        raise UserError(f"model {reference!r}: the folder has no config.json.{hint}")
    return path


def check(reference: str, reads: str = "causal-lm") -> None:
    """Look cheaply whether a model's folder is whole: weights, and of a causal LM the tokenizer. Raises UserError."""
    path = folder(reference)
    weights = list(path.glob("*.safetensors"))
    other = () if reads == "causal-lm" else ("*/*.safetensors", "pytorch_model.bin")
    if not weights and not any(any(path.glob(one)) for one in other):
        raise UserError(f"model {reference!r}: the folder has no weights (*.safetensors)")
    for file in weights:
        if not _is_whole(file):
            raise UserError(f"model {reference!r}: {file.name} is cut off or damaged; fetch it again")
    if reads == "causal-lm" and not any(any(path.glob(one)) for one in TOKENIZERS):
        raise UserError(f"model {reference!r}: the folder has no tokenizer (tokenizer.json)")


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, size)))
        ends = [told["data_offsets"][1] for name, told in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return bool(size == 8 + length + max(ends, default=0))


def _nearest(local: Path, names: dict[str, Any]) -> str:
    """What could have been meant: a shipped name, or a folder beside the one that is missing."""
    if local.is_symlink():
        return f"it was linked to {str(local.readlink())!r}, which is gone: moved, or pruned from the store"
    if "/" not in str(local):
        return f"it is neither shipped nor a folder, and a hub id is org/name.{suggestion(str(local), names)}"
    beside = local.parent
    while not beside.is_dir():
        beside = beside.parent
    wanted = local.relative_to(beside).parts[0]
    near = suggestion(wanted, [child.name for child in beside.iterdir() if child.is_dir()])
    return f"no folder {wanted!r} in {str(beside)!r}.{near}"


def _downloaded(reference: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = reference.partition("@")
    try:
        path = snapshot_download(
            name, revision=revision or None, allow_patterns=list(READ), ignore_patterns=list(UNREAD)
        )
    except Exception as error:  # offline, gated, missing: the hub's own classes differ by version
        said = str(error).strip().splitlines()
        raise UserError(
            f"model {reference!r} is neither shipped nor a folder, and the hub did not give it: "
            f"{type(error).__name__}{': ' + said[0] if said else ''}"
        ) from error
    return _checked(Path(path), reference)


def digest(reference: str) -> str:
    """Hash of everything that a model's folder is read from; for a hub id, its commit."""
    reference = str(reference)
    path = folder(reference)
    if HUB.fullmatch(reference) and path.parent.name == "snapshots":
        return f"{reference.partition('@')[0]}@{path.name}"
    # a ranker may come as tensors that torch has pickled; such a file is hashed, and never fetched
    found = sorted({file for one in (*READ, "pytorch_model.bin") for file in path.rglob(one) if file.is_file()})
    total = hashlib.blake2b(digest_size=16)
    for file in found:
        about = file.stat()
        content = _file_digest(str(file), about.st_size, about.st_mtime_ns)
        total.update(f"{file.relative_to(path).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=1024)
def _file_digest(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer(reference: str) -> Any:
    """The tokenizer of a model, without its weights. Raises UserError if it has none that gives offsets."""
    from .readers import load_tokenizer

    path = folder(reference)
    return load_tokenizer(str(path), digest(reference))


def count_tokens(
    samples: Sequence[Sample], model: str, template: str | Template | None = None
) -> npt.NDArray[np.int64]:
    """Tokens of each whole sample under its template, special tokens included: `int64 (n,)`.

    A conversation that does not end with the assistant counts as its prompt. One that the template does not
    read counts as its words.
    """
    from . import prompts

    words = tokenizer(model)
    how = template if isinstance(template, prompts.Template) else prompts.template(template, words)
    counts = np.zeros(len(samples), np.int64)
    # in pieces: encodings of a whole pool would not fit in memory
    for first in range(0, len(samples), 256):
        texts = [_whole(sample, how) for sample in samples[first : first + 256]]
        found = words.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=how.special)
        counts[first : first + len(texts)] = [len(one.ids) for one in found]
    return counts


def _whole(sample: Sample, how: Template) -> str:
    from .prompts import Refused
    from .readers import clean

    try:
        if sample.messages and sample.messages[-1]["role"] == "assistant":
            one = how.pair(sample)
            return clean(one.text + one.closing)
        return clean(how.prompt(sample.messages, sample.split))
    except Refused:
        return clean("\n\n".join(message["content"] for message in sample.messages))
