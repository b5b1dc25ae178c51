"""Reads the training text of nano and leaves out what its licence, or a row set aside, forbids."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHINGLE = 13  # words in a row that count as copied
LONG_RESPONSE = 80  # shorter responses ("Yes.") are shared by chance
LONG_INPUT = 40

# Licence of what each source was made from, not of the repository it was found in. Sources of
# lm_text_permissive state theirs on every document. A source absent here is left out.
LICENCE_BY_SOURCE = {
    "gpteacher_roleplay": "MIT",
    "gpteacher_codegen": "MIT",
    "gpteacher_toolformer": "MIT",
    "gsm8k_train": "MIT",
    "scar_octocoder": "Apache-2.0",  # OASST1; commits, under many licences, show by their code
    "self_instruct_seed": "Apache-2.0",
    "dolly": "CC BY-SA 3.0",
    "dolly_hhrlhf": "CC BY-SA 3.0",  # Dolly, and hh-rlhf under MIT
    "scar_open_human": "CC BY-SA",  # Dolly 3.0 and Stack Exchange 4.0
}
PERMISSIVE = {
    "MIT", "Apache-2.0", "MIT OR Apache-2.0", "BSD-3-Clause", "CC0 1.0", "Public Domain",
    "Unlicense (public domain)", "CC BY 3.0", "CC BY 4.0", "CC BY-SA", "CC BY-SA 3.0", "CC BY-SA 4.0",
    "ODC-By 1.0",
}  # fmt: skip
# Text of evaluations and of style studies: never read, whatever its licence.
NEVER = {
    "ltd_train", "style", "alpaca_eval_outputs", "vicuna80_outputs", "self_instruct_user_oriented", "lima",
}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """One training text; the first `prompt_chars` characters are the prompt with its blank line."""

    text: str
    prompt_chars: int
    source: str
    licence: str

    @property
    def prompt(self) -> str:
        return self.text[: self.prompt_chars].strip()

    @property
    def response(self) -> str:
        return self.text[self.prompt_chars :].strip()


def normalise(text: str) -> str:
    """Lower-case letters and digits only, so that spacing and punctuation hide no copy."""
    return re.sub(r"[\W_]+", "", text.lower())


def content_hash(text: str) -> str:
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


def shingles(text: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit hash of every run of 13 words."""
    words = re.findall(r"[^\W_]+", text.lower())
    if len(words) < SHINGLE:
        return np.empty(0, np.uint64)
    ids = np.fromiter((_word_id(word) for word in words), np.uint64, len(words))
    total = np.zeros(len(words) - SHINGLE + 1, np.uint64)
    for place in range(SHINGLE):  # a polynomial in an odd base, wrapping at 2**64
        total = total * np.uint64(0x9E3779B97F4A7C15) + ids[place : place + len(total)]
    return total


_WORD_IDS: dict[str, int] = {}


def _word_id(word: str) -> int:
    found = _WORD_IDS.get(word)
    if found is None:
        found = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        _WORD_IDS[word] = found
    return found


@dataclass
class Held:
    """Everything training may not have seen, in a form that answers quickly."""

    prompts: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)
    responses: set[str] = field(default_factory=set)
    runs: np.ndarray[Any, np.dtype[np.uint64]] = field(default_factory=lambda: np.empty(0, np.uint64))
    _pending: list[np.ndarray[Any, np.dtype[np.uint64]]] = field(default_factory=list)

    def add_row(self, instruction: str, input_: str, response: str) -> None:
        self.prompts.update((normalise(instruction + input_), normalise(instruction)))
        if len(normalise(input_)) > LONG_INPUT:
            self.inputs.add(normalise(input_))
        if len(normalise(response)) > LONG_RESPONSE:
            self.responses.add(normalise(response))
        self._pending.append(shingles(f"{instruction}\n\n{input_}"))
        self._pending.append(shingles(response))

    def add_text(self, text: str) -> None:
        """A string whose part in its row is unknown counts as prompt, as input and as response."""
        key = normalise(text)
        self.prompts.add(key)
        if len(key) > LONG_INPUT:
            self.inputs.add(key)
        if len(key) > LONG_RESPONSE:
            self.responses.add(key)
        self._pending.append(shingles(text))

    def seal(self) -> Held:
        self.prompts.discard("")
        self.runs = np.unique(np.concatenate([self.runs, *self._pending]))
        self._pending.clear()
        return self

    def clash(self, document: Document) -> str | None:
        """Why this document has to go, or None."""
        prompt, response = document.prompt, document.response
        first, _, rest = prompt.partition("\n\n")
        if prompt and (normalise(prompt) in self.prompts or (not rest and normalise(first) in self.prompts)):
            return "prompt"
        if rest and normalise(rest) in self.inputs:
            return "input"
        if normalise(response) in self.responses:
            return "response"
        runs = shingles(document.text)
        if len(runs) and len(self.runs):
            places = np.minimum(np.searchsorted(self.runs, runs), len(self.runs) - 1)
            if bool((self.runs[places] == runs).any()):
                return "13 words"
        return None


def held(data: Path, golden: Path | None, held_out: Path) -> Held:
    """The rows of held_out.tsv, with every text of data/ltd, data/style and golden."""
    found = Held()
    wanted = {line["id"] for line in read_held_out(held_out)}
    for row in pq.read_table(data / "pool.parquet").to_pylist():
        # LIMA is left out as a source; its rows also travel inside other collections.
        if row["id"] in wanted or row["source"] == "lima":
            found.add_row(row["instruction"], row["input"], row["output"])
    for folder in (data / "ltd", data / "style", golden):
        if folder is not None:
            for path in sorted(folder.rglob("*")):
                for text in _strings_of_file(path):
                    found.add_text(text)
    return found.seal()


def read_held_out(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def _strings_of_file(path: Path) -> Iterator[str]:
    """Every string in a JSON, JSONL or CSV file; the files of a tokenizer or model hold no rows."""
    name = path.name.removesuffix(".gz")
    if not path.is_file() or "tokenizer" in name or "config" in name or "vocab" in name:
        return
    if not name.endswith((".json", ".jsonl", ".csv")):
        return
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = raw.decode("utf-8", "replace")
    if name.endswith(".csv"):
        csv.field_size_limit(1 << 30)
        for cells in csv.reader(text.splitlines()):
            yield from cells
    elif name.endswith(".jsonl"):
        for line in text.split("\n"):
            if line.strip():
                yield from _strings(json.loads(line))
    else:
        yield from _strings(json.loads(text))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)


def read(folders: Iterable[Path]) -> Iterator[Document]:
    """Documents of every JSONL file of the folders, plain, gzip or zstd, in the order of the names."""
    for folder in folders:
        for path in sorted(folder.glob("*.jsonl*")):
            kind = {".zst": "zstd", ".gz": "gzip"}.get(path.suffix)
            with pa.input_stream(str(path), compression=kind) as stream:
                for line in stream.read().decode("utf-8").split("\n"):
                    if line:
                        row = json.loads(line)
                        source = row["source"].split(":")[0]
                        licence = row.get("licence") or LICENCE_BY_SOURCE.get(source, "not stated")
                        yield Document(row["text"], row["prompt_chars"], source, licence)


def allowed(documents: Iterable[Document], forbidden: Held) -> tuple[list[Document], Counter[tuple[str, str]]]:
    """The documents that may be trained on, each once, and what was dropped as (source, reason)."""
    kept: list[Document] = []
    dropped: Counter[tuple[str, str]] = Counter()
    seen: set[str] = set()
    for document in documents:
        key = normalise(document.text)
        reason: str | None
        if document.source in NEVER:
            reason = "never used"
        elif document.licence not in PERMISSIVE:
            reason = "licence"
        elif document.source == "scar_octocoder" and is_commit(document.prompt):
            reason = "licence of a commit"
        elif key in seen:
            reason = "duplicate"
        else:
            reason = forbidden.clash(document)
        if reason is None:
            seen.add(key)
            kept.append(document)
        else:
            dropped[document.source, reason] += 1
    return kept, dropped


def is_commit(prompt: str) -> bool:
    """Commit rows carry the code before the change below their instruction."""
    return "\n\n" in prompt and bool(re.search(r"[;{}=<>]|def |import ", prompt))
