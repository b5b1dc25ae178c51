"""In which language a text is written, so that a ranker is not believed where it has learned nothing.

py3langid does it: five megabytes with nothing pickled, no network, and about a millisecond a text. A check of
Unicode scripts alone would not do: what rankers were wrongly used on was Spanish, in Latin letters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any
from unicodedata import category

UNTOLD = "und"  # ISO 639: undetermined
LETTERS = 24  # fewer tell nothing
PROSE = 0.7  # share of letters among what is not blank, below which a text is code, numbers or a formula
SHARE = 0.05  # a language of fewer of the training texts has not been learned

FENCED = re.compile(r"```.*?(```|\Z)", re.DOTALL)
# The small ones of the detector's 139 are found where a text is mostly names; nobody's pool is in them.
LARGE = (
    "am ar az bg bn ca cs da de el en es et eu fa fi fr gl gu ha he hi hr hu hy id ig is it ja ka kk km kn ko lo lt "
    "lv mk ml mn mr ms my ne nl no or pa pl ps pt ro ru si sk sl so sq sr sv sw ta te tg th tl tr uk ur uz vi yo zh zu"
).split()


def language(text: str) -> str:
    """ISO 639-1 code of a text's language; "und" for code, numbers, and what is too short to tell."""
    prose = FENCED.sub(" ", text)
    # Indic vowels are marks to Unicode
    letters = sum(character.isalpha() or category(character)[0] == "M" for character in prose)
    wide = sum(ord(character) > 0x2E80 and character.isalpha() for character in prose)  # a word each, or nearly
    if letters + 5 * wide < LETTERS or letters < PROSE * len("".join(prose.split())):
        return UNTOLD
    return str(_identifier().classify(prose)[0])


def learned(texts: Iterable[str]) -> list[str]:
    """The languages that a fair share of training texts is written in; none where none can be told."""
    counts = Counter(language(text) for text in texts)
    counts.pop(UNTOLD, None)
    return sorted(name for name, count in counts.items() if count >= SHARE * counts.total())


@cache
def _identifier() -> Any:
    # an identifier of our own: the package's is shared by the whole process
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    found.set_languages(sorted(set(LARGE) & set(found.labels)))
    return found
