"""Samples become token ids, with labels on what the assistant says and on how a turn ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from siftune.prompts import Refused
from siftune.readers import clean

if TYPE_CHECKING:
    from siftune.prompts import Rendered, Template
    from siftune.samples import Sample

UNSAID = -100  # the label that torch's cross entropy skips

Span = tuple[int, int]


@dataclass
class Row:
    """One sequence to train on. `labels` equal `ids` where the assistant speaks, and are UNSAID elsewhere."""

    ids: list[int]
    labels: list[int]
    weight: float = 1.0

    @property
    def said(self) -> int:
        """How many tokens are learned; the first of a sequence is foretold by nothing."""
        return sum(label != UNSAID for label in self.labels[1:])


@dataclass
class Encoded:
    """The rows of a training, and what became of samples that are not in it as they are."""

    rows: list[Row] = field(default_factory=list)
    cut: int = 0  # samples whose end did not fit
    left_out: Counter[str] = field(default_factory=Counter)


def encode(
    samples: Iterable[Sample], weights: Iterable[float], tokenizer: Any, template: Template, max_length: int
) -> Encoded:
    """Every sample as one sequence, cut at the right; several where the template rewrites earlier turns."""
    made = Encoded()
    for sample, weight in zip(samples, weights, strict=True):
        try:
            parts = _sequences(template.turns(sample))
        except Refused as error:
            made.left_out[str(error)] += 1
            continue
        found = [_row(text, spans, tokenizer, template.special, weight) for text, spans in parts]
        made.cut += any(len(row.ids) > max_length for row in found)
        kept = [row for row in (Row(r.ids[:max_length], r.labels[:max_length], weight) for r in found) if row.said]
        made.rows += kept
        if not kept:
            made.left_out["no response within the length limit" if found else "the assistant says nothing"] += 1
    return made


def _sequences(turns: Sequence[Rendered]) -> list[tuple[str, list[tuple[Span, Span]]]]:
    """Whole conversations, each with the spans of its responses and of what closes them.

    The last turn's text holds the earlier ones, unless the template writes past turns differently (drops
    their thoughts, say): those make a sequence of their own.
    """
    if not turns:
        return []
    whole = turns[-1].text + turns[-1].closing
    inside = [turn for turn in turns if whole.startswith(turn.text)]
    spans = []
    for turn in inside:
        closed = turn.end + len(turn.closing) if whole.startswith(turn.text + turn.closing) else turn.end
        spans.append(((turn.start, turn.end), (turn.end, closed)))
    return [*_sequences([turn for turn in turns if turn not in inside]), (clean(whole), spans)]


def _row(text: str, spans: list[tuple[Span, Span]], tokenizer: Any, special: bool, weight: float) -> Row:
    ids, places = _tokens(text, [span[0] for span, _ in spans], tokenizer, special)
    ends = set(tokenizer.all_special_ids)
    labels = [UNSAID] * len(ids)
    closed = False
    for (start, end), (_, after) in spans:
        closed = False
        for at, (low, high) in enumerate(places):
            in_response, in_closing = start < high <= end, low >= end and end < high <= after
            if in_response or (in_closing and not closed):
                labels[at] = ids[at]
            # what a template writes after the end token is not the assistant's
            closed = closed or (in_closing and ids[at] in ends)
    if not closed and tokenizer.eos_token_id is not None:
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return Row(ids, labels, weight)


def _tokens(text: str, starts: list[int], tokenizer: Any, special: bool) -> tuple[list[int], list[Span]]:
    """Ids and the characters of each, such that no token holds words of a prompt and of its response.

    A blank before the first word belongs to that word's token in most vocabularies, and may stay there.
    """
    cuts: list[int] = []
    while True:
        ids: list[int] = []
        places: list[Span] = []
        for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece = tokenizer.backend_tokenizer.encode(text[low:high], add_special_tokens=special and low == 0)
            used = len(piece.ids)
            while used and piece.special_tokens_mask[used - 1]:  # an end token that the tokenizer adds by itself
                used -= 1
            ids += piece.ids[:used]
            places += [(a + low, b + low) for a, b in piece.offsets[:used]]
        across = {s for s in starts for a, b in places if a < s < b and text[a:s] != " "} - set(cuts)
        if not across:
            return ids, places
        cuts = sorted({*cuts, *across})
