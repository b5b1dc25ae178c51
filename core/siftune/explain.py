"""Why a sample was kept or not, told in the terminal: `siftune explain`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import shown
from .story import story

if TYPE_CHECKING:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

__all__ = ["show", "story", "write"]

LONGEST_TEXT = 700  # characters of a message
MOST_TOKENS = 400  # in colour
STRONG = (0.1, 0.5, 1.5)  # nats by which the context helps or hinders a token: where a colour grows darker


def show(folder: Path, row: str, *, as_json: bool) -> None:
    """Print the story of a sample. Raises UserError, see story."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:  # rich would leave with an error
            raise BrokenPipeError

    told = story(folder, row)
    if as_json:
        print(json.dumps(told, indent=2, ensure_ascii=False, default=str))
    else:
        write(told, Piped(highlight=False, markup=False, emoji=False))


def write(told: Mapping[str, Any], console: Console) -> None:
    """Write a story to a terminal; what strangers wrote is shown and never obeyed."""
    from rich.text import Text

    console.print(_headline(told))
    console.print()
    _write_text(told, console)
    console.print(Text.assemble(("steps", "bold"), ("  (ranks count from the highest value)", "dim")))
    for number, step in enumerate(told["steps"], 1):
        _write_step(number, step, console)
    for found in told["tokens"]:
        console.print()
        _write_tokens(found, console)
    family = [f"rewrites {told['parent']}"] if told["parent"] else []
    for one in told["rewrites"]:
        family.append(
            f"rewritten by {one['made_by']} as {one['id']}, {'kept' if one['kept'] else 'not kept'}"
        )
    family += [f"the same text: row {number}" for number in told["same_text"][:10]]
    if family:
        console.print()
        console.print(Text("family", style="bold"))
    for line in family:
        console.print(Text("   " + shown.visible(line)))


def _headline(told: Mapping[str, Any]) -> Text:
    from rich.text import Text

    name = f"row {told['row']}" if told["row"] is not None else "rewrite"
    if told["kept"]:
        end, style = "kept" + (f", rank {told['rank']:,}" if told["rank"] is not None else ""), "bold green"
        end += f", weight {told['weight']:.4g}" if told["weight"] not in (None, 1.0) else ""
    elif told["status"] == "ok":
        end, style = "not chosen", "bold yellow"
    else:
        end, style = f"{told['status'].replace('_', ' ')}: {shown.visible(str(told['reason']))}", "bold red"
    return Text.assemble((name, "bold"), (f"  {told['id']}  ", "dim"), (end, style))


def _write_text(told: Mapping[str, Any], console: Console) -> None:
    from rich.text import Text

    for message in told["messages"] or ():
        text, more = shown.shortened(message["content"], LONGEST_TEXT)
        console.print(Text(shown.visible(message["role"]), style="bold"))
        body = Text(text)
        if more:
            body.append(f" … {more:,} more characters", style="dim")
        console.print(_indented(body))
        console.print()
    if told["text_note"]:
        console.print(Text(shown.visible(told["text_note"]), style="yellow"))
        console.print()


def _write_step(number: int, step: Mapping[str, Any], console: Console) -> None:
    from rich.text import Text

    line = Text.assemble((f"{number:>2} ", "dim"), (shown.visible(step["step"]), "bold"))
    lines = [shown.visible(step["says"])] if step["says"] else []
    if step["reason"]:
        # what a select did not even consider was not beaten by the last one kept
        lines = [] if step["hook"] == "select" else lines
        lines.insert(0, f"{step['state'].replace('_', ' ')}: {shown.visible(step['reason'])}")
    if step["in_play_before"] and not step["in_play_after"]:
        lines.append("here it comes out of play")
    console.print(line)
    for said in lines:
        style = "red" if said == "here it comes out of play" else "dim" if not step["given"] else ""
        console.print(_indented(said, style))
    wide = max((len(value["column"]) for value in step["values"]), default=0)
    for value in step["values"]:
        figure = "no value" if value["value"] is None else shown.number(value["value"])
        words = Text.assemble(f"{value['column']:<{wide}}  {figure:>10}", (f"   {_place(value)}", "dim"))
        console.print(_indented(words))


def _place(value: Mapping[str, Any]) -> str:
    """Where a number stands among those of the pool."""
    if "percentile" not in value:
        return ""
    if value["equal"] == value["of"]:
        return f"the same for all {value['of']:,}"
    return f"percentile {value['percentile']:.1f}, rank {value['rank_from_top']:,} of {value['of']:,}"


def _write_tokens(found: Mapping[str, Any], console: Console) -> None:
    """The text with each token on the colour of how much its context helped to foretell it."""
    from rich.text import Text

    tokens = found["tokens"]
    mean = sum(token["helped"] for token in tokens) / len(tokens) if tokens else 0.0
    what = f": what its context did for each of {len(tokens):,} tokens (nats, mean {mean:+.2f})"
    console.print(Text.assemble((found["column"], "bold"), what))
    if found["note"]:
        console.print(_indented(shown.visible(found["note"]), "yellow"))
        return
    if console.color_system is None:
        console.print(_indented("a terminal shows it in colours, token by token; --json gives every number"))
    else:
        _colour(tokens, console)
    ordered = sorted(tokens, key=lambda token: float(token["helped"]))
    for words, some in (("most helped", ordered[::-1]), ("most hindered", ordered)):
        said = "  ".join(f"{_quoted(token['text'])} {token['helped']:+.2f}" for token in some[:6])
        console.print(_indented(Text.assemble((f"{words:<14}", "dim"), said)))


def _quoted(text: str) -> str:
    return json.dumps(shown.visible(text), ensure_ascii=False) if text else "(rest of a character)"


def _colour(tokens: Sequence[Mapping[str, Any]], console: Console) -> None:
    from rich.text import Text

    legend = Text()
    for level, words in zip((-3, -2, -1, 0, 1, 2, 3), LEGEND, strict=True):
        legend.append(f" {words} ", style=_style(level)).append(" ")
    console.print(_indented(legend))
    body = Text()
    for token in tokens[:MOST_TOKENS]:
        body.append(shown.visible(token["text"]), style=_style(_level(token["helped"])))
    if len(tokens) > MOST_TOKENS:
        body.append(f" … {len(tokens) - MOST_TOKENS:,} more tokens", style="dim")
    console.print(_indented(body))


def _indented(text: str | Text, style: str = "") -> Padding:
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(text, style=style) if isinstance(text, str) else text, (0, 0, 0, 3), expand=False)


LEGEND = ("hindered by 1.5", "0.5", "0.1", "neither", "0.1", "0.5", "helped by 1.5")


def _level(helped: float) -> int:
    """From -3, where the context hinders most, to 3, where it helps most."""
    return int(math.copysign(sum(abs(helped) >= strong for strong in STRONG), helped))


def _style(level: int) -> str:
    """Orange hinders, blue helps: told apart by most eyes, dark text on light, light text on dark."""
    return {
        -3: "bold #ffffff on #a8430b", -2: "#000000 on #e08a45", -1: "#000000 on #f6cfa8", 0: "",
        1: "#000000 on #bcd8f2", 2: "#000000 on #6ba6da", 3: "bold #ffffff on #1d5c9c",
    }[level]  # fmt: skip
