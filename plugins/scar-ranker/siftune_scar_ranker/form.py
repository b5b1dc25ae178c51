"""The linguistic form of one text in numbers: words, sentences, punctuation and layout, none of which grows with
the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from unicodedata import category, normalize

import numpy as np

# What each measure is; those of PROSE are of words and need some, those of LAYOUT are of lines and do not.
PROSE = {
    "mtld": "words",
    "function_words": "share of words",
    "sentence_length": "words",
    "sentence_spread": "words",
    "flesch": "points",
    "commas": "per word or mark",
    "questions": "per word or mark",
    "colons": "per word or mark",
    "brackets": "per word or mark",
}
LAYOUT = {"lists": "share of lines", "headings": "share of lines", "code": "share of lines", "bold": "share of lines"}

# Bounds, so that a text that is no prose cannot outweigh a thousand that are.
REPEATED = 0.72  # the share of different words at which MTLD begins anew (McCarthy & Jarvis 2010)
MOST_MTLD = 200.0  # of a text in which hardly a word comes twice, MTLD is anything up to infinite
LONGEST = 100  # words of a sentence; what goes on for longer has no full stops
LEAST_FLESCH = -100.0

# Everything below takes one pass over the text: nothing is optional twice, and a run of marks is entered at its first.
WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*+")
MARKS = {"commas": ",;，；、", "questions": "?!？！", "colons": ":：–—", "brackets": '()[]{}"“”«»„（）「」'}
MARK = re.compile(r"[^\w\s]")
FENCE = re.compile(r"\s*(`{3,}+(?!.*`)|~{3,}+)")  # what closes on its own line is no fence
ITEM = re.compile(r"\s*(?:[-*+•‣◦–]|\(?\d{1,3}[.):]|\(?[a-z]\))\s+(?=\S)")
HEADING = re.compile(r"\s{0,3}#{1,6}\s+\S|\s*\*\*[^*]+\*\*:?\s*$|\s*(?:={3,}|-{3,})\s*$")
BOLD = re.compile(r"\*\*[^*\s]|__[^_\s]|<(?:b|strong)>")
# a sentence ends where a capital, a figure or no letter at all goes on: "e.g. this" is one
STOP = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_]*+\s++(?=[^a-zà-ÿ])|(?<![。！？])[。！？]++")
VOWELS = re.compile(r"[aeiouyà-æè-ïò-öø-ýœ]+")
SILENT = re.compile(r"(?:(?:[^aeiouylà-ÿ]|[aeiouy]l)e|(?:[^aeiouylscxzgà-ÿ]|[aeiouy]l)es|[^aeiouytdà-ÿ]ed)$")


def measures(text: str) -> tuple[dict[str, float], int]:
    """Every measure of PROSE and LAYOUT, and how many words they are of. Without a word PROSE is not told.

    Fenced code counts as layout and nowhere else.
    """
    lines = list(_lines(_composed(text)))
    found = _layout(lines)
    sentences = [words for one in _sentences(lines) if (words := WORD.findall(one))]
    words = [word.casefold() for sentence in sentences for word in sentence]
    if not words:
        return found, 0
    lengths = np.minimum([len(sentence) for sentence in sentences], LONGEST)
    said = "\n".join(_bare(line) for line, kind in lines if kind != "code")
    marks = MARK.findall(said)
    total = len(words) + len(marks)
    found |= {
        "mtld": mtld(words),
        "function_words": sum(map(is_function_word, words)) / len(words),
        "sentence_length": float(lengths.mean()),
        "sentence_spread": float(lengths.std()),
        "flesch": flesch(words, len(sentences)),
    }
    found |= {name: sum(mark in signs for mark in marks) / total for name, signs in MARKS.items()}
    return found, len(words)


def mtld(words: Sequence[str]) -> float:
    """The measure of textual lexical diversity: how many words go on, on average, before the share of different
    ones has fallen to REPEATED; the mean of reading forwards and backwards (McCarthy & Jarvis 2010, with the part
    of a stretch that is left at the end counted as such). At most MOST_MTLD."""
    return (_mtld(words) + _mtld(words[::-1])) / 2


def _mtld(words: Sequence[str]) -> float:
    stretches, seen, length = 0.0, set[str](), 0
    for word in words:
        length += 1
        seen.add(word)
        if len(seen) <= REPEATED * length:
            stretches, seen, length = stretches + 1, set(), 0
    if length:
        stretches += (1 - len(seen) / length) / (1 - REPEATED)
    return min(len(words) / stretches, MOST_MTLD) if stretches else MOST_MTLD


def flesch(words: Sequence[str], sentences: int) -> float:
    """Flesch's reading ease: 206.835 - 1.015 words per sentence - 84.6 syllables per word. English."""
    ease = 206.835 - 1.015 * len(words) / sentences - 84.6 * sum(map(syllables, words)) / len(words)
    return max(ease, LEAST_FLESCH)


@lru_cache(1 << 16)
def syllables(word: str) -> int:
    """Groups of vowels of an English word, without one that is not spoken at its end; at least 1."""
    return max(1, len(VOWELS.findall(word)) - bool(SILENT.search(word)))


@lru_cache(1 << 16)
def is_function_word(word: str) -> bool:
    """Whether an English word, in small letters, holds a sentence together and has no subject of its own."""
    stem = re.split("['’]", word)[0]
    return word in _function_words() or word.replace("’", "'").endswith("n't") or stem in _function_words()


@cache
def _function_words() -> frozenset[str]:
    return frozenset((files(__package__) / "function_words.txt").read_text(encoding="utf-8").split())


def _composed(text: str) -> str:
    """A text without the marks that stand on, under or beside letters, which would cut words: `é` as one letter, and
    Indic letters without their vowel signs."""
    if text.isascii():
        return text
    return "".join(one for one in normalize("NFC", text) if category(one)[0] != "M")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, and what each is: code (with its fences), item, heading or prose. A blank line, which
    ends a paragraph, comes as such."""
    fence = ""
    for line in text.splitlines():
        mark = FENCE.match(line)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
            yield line, "code"
        elif mark:
            fence = mark[1]
            yield line, "code"
        elif not line.strip():
            yield line, "blank"
        elif HEADING.match(line):
            yield line, "heading"
        else:
            yield line, "item" if ITEM.match(line) else "prose"


def _layout(lines: Sequence[tuple[str, str]]) -> dict[str, float]:
    kinds = [kind for line, kind in lines if line.strip()]
    total = max(len(kinds), 1)
    bold = sum(kind != "code" and bool(BOLD.search(line)) for line, kind in lines)
    return {
        "lists": kinds.count("item") / total,
        "headings": kinds.count("heading") / total,
        "code": kinds.count("code") / total,
        "bold": bold / total,
    }


def _sentences(lines: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A paragraph may go on over a line's end; an item and a heading each stand alone."""
    paragraph: list[str] = []
    for line, kind in [*lines, ("", "blank")]:
        if kind == "prose":
            paragraph.append(line)
            continue
        yield from STOP.split("\n".join(paragraph))
        # what goes on under an item without a blank line belongs to it
        paragraph = [_bare(line)] if kind == "item" else []
        if kind == "heading":
            yield _bare(line)


def _bare(line: str) -> str:
    """A line without the sign that makes it an item."""
    mark = ITEM.match(line)
    return line[mark.end() :] if mark else line
