"""Task instances put into words: each under one wording, or each under all of them.

    python -m siftune_kmeans_coreset.wordings rte.train.jsonl.gz cb.train.jsonl.gz \\
        --wordings wordings.json --out nli.jsonl

An instance is a row with `dataset`, `fields` (its raw data), `choices` where its task has options, and `label`.
Two rows are the same instance if their dataset, fields and choices are the same, whatever text they were given
before. `wordings.json` holds for every dataset a list of `{"wording_id", "prompt", "verbalizer"}`: a prompt names
fields and options in braces, a verbalizer says how a label is spoken (the chosen option's own text without one).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from siftune import UserError

Row = Mapping[str, Any]
Wordings = Mapping[str, Sequence[Mapping[str, Any]]]

PLACE = re.compile(r"\{(\w+)\}")
# how the ten COPA wordings of P3 speak of its two questions
ASKED = {
    "cause": {
        "because_so": "because",
        "this_happened": "This happened because",
        "a_question": "a cause",
        "as_a": "as a result of",
    },
    "effect": {
        "because_so": "so",
        "this_happened": "As a consequence",
        "a_question": "an effect",
        "as_a": "as a consequence",
    },
}


def instance(row: Row) -> str:
    """What tells an instance from another: a hash of its raw data, not of its text."""
    said = [row["dataset"], row["fields"], row.get("choices")]
    text = json.dumps(said, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def worded(row: Row, wording: Mapping[str, Any]) -> dict[str, Any]:
    """The instance under a wording, as a row of `prompt` and `completion`. Raises UserError."""
    name = f"wording {wording['wording_id']} of {row['dataset']}"
    choices = list(row.get("choices") or ())
    places = {str(key): str(value) for key, value in row["fields"].items()} | _options(choices)
    places |= ASKED.get(places.get("question", ""), {})

    def fill(match: re.Match[str]) -> str:
        if match[1] not in places:
            raise UserError(f"{name} asks for {match[1]!r}, and the row has none")
        return places[match[1]]

    spoken = wording.get("verbalizer")
    try:
        answer = choices[row["label"]] if spoken is None else spoken[str(row["label"])]
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{name} has no word for {row['label']!r}") from None
    return {
        "prompt": PLACE.sub(fill, wording["prompt"]),
        "completion": answer,
        "instance": instance(row),
        "wording": wording["wording_id"],
        **{key: row[key] for key in ("dataset", "task", "label", "fields", "choices") if row.get(key) is not None},
    }


def _options(choices: Sequence[str]) -> dict[str, str]:
    """The options as wordings list them."""
    if not choices:
        return {}
    quoted = [f'"{choice}"' for choice in choices]

    def either(words: Sequence[str]) -> str:
        return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]

    return {
        **{f"opt{at}": choice for at, choice in enumerate(choices)},
        "options_ab": "\n\n".join(f"({chr(97 + at)})  {choice}" for at, choice in enumerate(choices)),
        "options_dash": "\n".join(f"- {choice}" for choice in choices),
        "opts_or": either(choices),
        "opts_or_q": either(quoted),
        "opts_comma": ", ".join(choices),
    }


def render(rows: Iterable[Row], wordings: Wordings, which: int | None) -> Iterator[dict[str, Any]]:
    """Every instance once under the wording of this number, or under every wording of its dataset (None)."""
    seen: set[str] = set()
    for row in rows:
        if instance(row) in seen:
            continue
        seen.add(instance(row))
        known = {one["wording_id"]: one for one in wordings.get(row["dataset"], ())}
        if not known or (which is not None and which not in known):
            raise UserError(f"there is no wording {'' if which is None else which} for {row['dataset']}")
        for wording in known.values() if which is None else [known[which]]:
            yield worded(row, wording)


def read(paths: Iterable[Path]) -> Iterator[Row]:
    """Rows of JSON lines, packed or not. Raises UserError that names the line."""
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                missing = [key for key in ("dataset", "fields", "label") if key not in row]
                if missing:
                    raise UserError(f"{path}, line {number}: no {missing[0]!r}, so it is no task instance")
                yield row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path, help="JSON lines of task instances, or a selection of them")
    parser.add_argument("--wordings", type=Path, required=True, help="wordings of every dataset, JSON")
    parser.add_argument("--wording", type=int, default=0, help="number of the one wording [default: 0]")
    parser.add_argument("--every", action="store_true", help="every wording instead, a row for each")
    parser.add_argument("--out", type=Path, required=True, help="rows of prompt and completion, JSON lines")
    given = parser.parse_args(arguments)
    wordings = json.loads(given.wordings.read_text(encoding="utf-8"))
    try:
        told = list(render(read(given.rows), wordings, None if given.every else given.wording))
    except UserError as error:
        sys.exit(str(error))
    given.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told), encoding="utf-8")
    instances = len({row["instance"] for row in told})
    print(f"{given.out}: {instances} instances, {len(told)} rows")


if __name__ == "__main__":
    main()
