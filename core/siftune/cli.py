"""The command line: `siftune run DATA HOOK METHOD ...`, and what stands around it."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import UserError, suggestion
from .hookspecs import HOOKS

if TYPE_CHECKING:
    from .api import Run
    from .progress import Quiet
    from .recipe import Recipe


class RunCommand(click.Command):
    """`run`, whose own options and data come first, up to the first positional word that is a hook."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = self._head(args)
        ctx.meta["siftune.chain"] = args[end:]
        return super().parse_args(ctx, args[:end])

    def _head(self, args: Sequence[str]) -> int:
        """Where the chain begins; a value may be called like a hook, so options are walked with their values."""
        valued = {
            flag
            for p in self.params
            if isinstance(p, click.Option) and not p.is_flag
            for flag in (*p.opts, *p.secondary_opts)
        }
        at = 0
        while at < len(args):
            if args[at] in valued:
                at += 2
            elif args[at] in HOOKS:
                return at
            else:
                at += 1
        return len(args)

    def flags(self) -> list[str]:
        """Every option of the run as it is spelled."""
        return [flag for p in self.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("--")]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "DATA...", "HOOK METHOD [--option ...] ...", "| RECIPE"]


class Group(click.Group):
    """Commands in the order that they are needed in; a misspelt one is told its neighbour."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            answer = super().invoke(ctx)
            sys.stdout.flush()  # here, and not where nobody catches what it raises
        except BrokenPipeError as error:
            if _in_a_step(error):
                raise
            _hush()  # who reads has what it wants; click would leave with an error
            return 0
        return answer

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            if args[0] in HOOKS:
                raise UserError(f"{args[0]} is a step of a run: siftune run DATA {args[0]} METHOD ...")
            raise UserError(f"siftune has no command {args[0]!r}.{suggestion(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="siftune")
def cli() -> None:
    """Find the few instruction samples worth training on, improve them, and prove that it helped."""


def run_options(command: Any) -> Any:
    """What `run` and `quickstart` both take."""
    for option in reversed(
        (
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                help="folder of the run  [default: runs/<recipe>-<n>]",
            ),
            click.option("--store", type=click.Path(path_type=Path), help="where computed values are kept and shared"),
            click.option("--teacher", help="OpenAI-compatible endpoint, or vllm:MODEL to start a server"),
            click.option("--teacher-model", help="what the endpoint calls the teacher"),
            click.option("--device", help="cpu, cuda, cuda:1, mps  [default: the best there is]"),
            click.option("--quiet", is_flag=True, help="say nothing but the result"),
            click.option("--json", "as_json", is_flag=True, help="print the result as JSON"),
        )
    ):
        command = option(command)
    return command


@cli.command(cls=RunCommand)
@click.argument("data", nargs=-1)
@click.option("--data", "instead", multiple=True, help="data set to use in place of the recipe's (again for several)")
@run_options
@click.option("--seed", type=int, help="of everything that is drawn  [default: 0]")
@click.option("--limit", type=click.IntRange(min=1), help="read only so many rows")
@click.option("--model", help="student: shipped name, folder or hub id; for every step that names none")
@click.option("--template", help="prompt template: auto, chat, alpaca, vicuna, wiz, plain  [default: auto]")
@click.option("--dtype", help="float32, bfloat16  [default: float32 on a processor, bfloat16 on a GPU]")
@click.option("--min-coverage", type=click.FloatRange(0, 1), help="share of rows that a step has to finish")
@click.option(
    "--input-format",
    default=None,
    help="how rows are read: alpaca, sharegpt, messages, prompt  [default: detected]",
)
@click.option("--format", default="", help="how selected.jsonl is written  [default: as the rows came]")
@click.option("--on-bad-row", type=click.Choice(["stop", "leave-out"]), help="at a malformed row  [default: stop]")
@click.option("--keep-duplicates", is_flag=True, default=None, help="leave equal rows in play")
@click.option("--overwrite", is_flag=True, help="replace the run in the folder when this one is finished")
@click.option("--save", type=click.Path(path_type=Path), help="write the chain as a recipe, and run nothing")
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> None:
    """Carry out a chain of steps on a data set, or a recipe.

    \b
    siftune run pool.jsonl score length select top --by length --budget 5%
    siftune run recipe.toml --data other.jsonl
    siftune run pool.jsonl score --help          the methods of a hook
    siftune run pool.jsonl score ifd --help      the options of a method
    """
    recipe = _recipe(ctx, given)
    if given["save"]:
        for step in recipe.steps:
            step.method()
        recipe.write(given["save"], overwrite=given["overwrite"])
        click.echo(f"wrote {given['save']}; carry it out: siftune run {given['save']}")
        return
    carried = _carry_out(recipe, **{k: given[k] for k in ("out", "store", "overwrite", "format", "quiet", "as_json")})
    _conclude(carried, as_json=given["as_json"])


def _recipe(ctx: click.Context, given: dict[str, Any]) -> Recipe:
    from dataclasses import replace

    from .chain import parse
    from .recipe import Recipe

    words: list[str] = ctx.meta["siftune.chain"]
    command = ctx.command
    assert isinstance(command, RunCommand)
    data: tuple[str, ...] = given["data"]
    if words or len(data) > 1 or (data and not _is_recipe(data[0])):
        _check_data(data)
    recipes = [path for path in data if path.endswith(".toml")]
    if recipes and (words or len(data) > 1):
        raise UserError(f"{recipes[0]} is a recipe and has its own steps; give it alone, and its data with --data")
    if words:
        try:
            steps = tuple(parse(words, command.flags()))
        except UserError as error:
            if not data and Path(words[0]).exists():
                raise UserError(f"{error} (for the file of that name write ./{words[0]})") from None
            for before, word in pairwise(words):
                if not data and not before.startswith("--") and (Path(word).is_file() or "://" in word):
                    raise UserError(f"the data set comes first: siftune run {word} {words[0]} ...") from None
            raise
        recipe = Recipe(steps)
        recipe = replace(recipe, data=replace(recipe.data, path=data))
    elif len(data) == 1:
        if not data[0].endswith(".toml") and (Path(data[0]).is_file() or "://" in data[0]):
            raise UserError(
                f"no step is named; put one after the data set, such as: siftune run {data[0]} score length"
            )
        recipe = Recipe.read(data[0])
    else:
        raise UserError("nothing to do; write: siftune run DATA HOOK METHOD ..., or siftune run RECIPE")
    if given["instead"]:
        recipe = replace(recipe, data=replace(recipe.data, path=given["instead"]))
    names = {"seed", "model", "template", "teacher", "teacher_model", "dtype", "device", "min_coverage"}
    defaults = {k: given[k] for k in names if given.get(k) is not None}
    read = {
        "format": given["input_format"],
        "on_bad_row": given["on_bad_row"],
        "limit": given["limit"],
        "keep_duplicates": given["keep_duplicates"],
    }
    told = {k: v for k, v in read.items() if v is not None}
    return replace(recipe, run=replace(recipe.run, **defaults), data=replace(recipe.data, **told))


def _is_recipe(path: str) -> bool:
    from .recipe import find

    try:
        return bool(find(path))
    except UserError:
        return False


def _check_data(data: Sequence[str]) -> None:
    """Whether each is a file, or at least no step that was misspelt into one. Raises UserError."""
    from .errors import near
    from .methods import found

    for word in data:
        if Path(word).exists() or "." in word or "/" in word:
            continue
        hook = next((one for one in HOOKS if word in found(one)), None)
        if hook is not None:
            raise UserError(f"{word!r} is a method of {hook}; write: {hook} {word}")
        named, equals, _ = word.partition("=")
        if hint := near(named.lower(), HOOKS):
            hint = " A step is HOOK METHOD, such as: score length" if equals else hint
            raise UserError(f"there is no file {word!r}, and no such hook.{hint}")


def _carry_out(recipe: Recipe, *, quiet: bool, as_json: bool, **options: Any) -> Run:
    from . import api

    progress = _progress(quiet)
    try:
        return api.carry_out(recipe, progress=progress, **options)
    finally:
        close = getattr(progress, "close", None)
        if close:
            close()


def _progress(quiet: bool) -> Quiet:
    from rich.console import Console

    from . import progress

    if quiet:
        return progress.Quiet()
    console = Console(stderr=True)
    return progress.Bar(console) if console.is_terminal else progress.Lines(console)


def _conclude(carried: Run, *, as_json: bool) -> None:
    """Say what was kept and where everything is."""
    from . import shown
    from .runfolder import user_path

    counts = carried.manifest["counts"]
    if as_json:
        told = {"folder": str(carried.folder), "counts": counts, "computed": carried.computed}
        told |= {"steps": carried.manifest["steps"], "results": carried.results}
        if carried.arms:
            told["arms"] = {name: arm.results for name, arm in carried.arms.items()}
        click.echo(json.dumps(told, indent=2, default=str))
        return
    folder = user_path(carried.folder)
    if counts["rows"]:
        rest = "".join(
            f", {counts[n]:,} {n.replace('_', ' ')}"
            for n in ("left_out", "failed", "rejected", "rewrites")
            if counts[n]
        )
        click.echo(f"{shown.rows(counts['rows'])}: {counts['kept']:,} kept{rest}")
    if not any(one.computed for one in carried.all.values()):
        click.echo("nothing was computed: every step was in the store")
    width = max(map(len, carried.all))
    for step, figures in carried.compared.items():
        for figure, values in figures.items():
            said = {name: _figure(value) for name, value in values.items()}
            if len(set(said.values())) == 1:
                lacking = " that have it" if len(said) < len(carried.all) else ""
                alike = f" in all arms{lacking}" if len(said) > 1 else ""
                click.echo(f"{step}: {figure} {next(iter(said.values()))}{alike}")
            else:
                click.echo(f"{step}: {figure}" + "".join(f"\n  {name:<{width}}  {one}" for name, one in said.items()))
    click.echo(
        f"{folder}/report.html  {folder}/table.parquet" + (f"  {folder}/selected.jsonl" if counts["rows"] else "")
    )


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        inner = f"{value['value']:.4g}" if "value" in value else ", ".join(f"{k} {v}" for k, v in value.items())
        inner += f" [{value['low']:.4g}, {value['high']:.4g}]" if "low" in value else ""
        return inner + (f", n {value['n']:,}" if "n" in value else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@cli.command()
@run_options
def quickstart(**given: Any) -> None:
    """The whole chain on the bundled pool of 2,000 real rows: no GPU, no network."""
    from . import quickstart as whole

    whole.start(carry_out=_carry_out, conclude=_conclude, **given)


@cli.command()
@click.argument("hook", required=False)
@click.argument("method", required=False)
@click.option("--json", "as_json", is_flag=True, help="print them as JSON")
def methods(hook: str | None, method: str | None, as_json: bool) -> None:
    """List the methods that are installed, and those that could be; show the options of METHOD."""
    from . import registry
    from .methods import found

    if hook is not None and hook not in HOOKS:
        named = [(one, hook) for one in HOOKS if hook in found(one)] if method is None else []
        if not named:
            raise UserError(f"no hook {hook!r}.{suggestion(hook, HOOKS)}")
    else:
        named = [(hook, method)] if hook and method else []
    if named:
        from .chain import method_help

        click.echo("\n\n".join(method_help(*one) for one in named))
        return
    rows = []
    for one in [hook] if hook else HOOKS:
        here, known = found(one), registry.methods(one)
        for name in sorted({*here, *known}):
            told = known.get(name)
            rows.append(
                {
                    "hook": one,
                    "name": name,
                    "package": here[name].package if name in here else told.package if told else "",
                    "installed": name in here,
                    "summary": told.summary if told else "",
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        mark = "" if row["installed"] else f"  (siftune install {row['package']})"
        click.echo(f"{row['hook']:<9} {row['name']:<12} {row['summary'] or row['package']}{mark}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="print them as JSON")
def plugins(as_json: bool) -> None:
    """List the installed distributions that provide methods, observers or models."""
    from .methods import installed

    by_package: dict[str, dict[str, Any]] = {}
    for group in (*(f"siftune.{hook}" for hook in HOOKS), "siftune.models", "siftune"):
        for entry, dist in installed(group):
            told = by_package.setdefault(dist.metadata["Name"], {"version": dist.version, "provides": []})
            kind = {"siftune": "observer", "siftune.models": "model"}.get(group, group.partition(".")[2])
            told["provides"].append(f"{kind} {entry.name}")
    if as_json:
        click.echo(json.dumps(by_package, indent=2))
        return
    for name, told in sorted(by_package.items()):
        click.echo(f"{name} {told['version']}: {', '.join(told['provides'])}")


@cli.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="say what would be installed")
def install(name: str, dry_run: bool) -> None:
    """Install the package that brings a method; NAME is a method or a package."""
    from . import scaffold

    scaffold.install(name, dry_run=dry_run)


@cli.group()
def new() -> None:
    """Begin something of your own."""


@new.command("plugin")
@click.argument("name")
@click.option("--hook", type=click.Choice(HOOKS), required=True, help="which hook its method implements")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="folder to make it in")
def new_plugin(name: str, hook: str, into: Path) -> None:
    """Write a plugin's folder: pyproject.toml, module, test, README."""
    from . import scaffold

    folder = scaffold.new_plugin(name, hook, into)
    click.echo(f"wrote {folder}; next: pip install -e {folder} && siftune check {scaffold.method_name(name)}")


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def check(name: str, options: tuple[str, ...]) -> None:
    """Check that an installed method keeps the rules. NAME is METHOD or HOOK/METHOD; options of it may follow."""
    from . import testing

    for told in testing.check(name, options):
        click.echo(told)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("row")
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def explain(folder: Path, row: str, as_json: bool) -> None:
    """Say why a sample was kept or not. ROW is its row in the input, or the beginning of its id."""
    from . import explain as story

    story.show(folder, row, as_json=as_json)


@cli.group()
def store() -> None:
    """What has been computed and kept."""


_store_option = click.option("--store", "root", type=click.Path(path_type=Path), help="folder of the store")


@store.command("ls")
@_store_option
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def store_ls(root: Path | None, as_json: bool) -> None:
    """List what is kept, biggest first."""
    from .store import Store, default_root

    place = root or default_root()
    entries = Store(place).entries()
    if as_json:
        click.echo(json.dumps(entries, indent=2))
        return
    for entry in entries:
        click.echo(f"{entry['bytes'] / 1e6:10.1f} MB  {entry['key'][:12]}  {entry['step'] or entry['kind']}")
    click.echo(f"{sum(e['bytes'] for e in entries) / 1e6:10.1f} MB  in {place}")


@store.command("prune")
@_store_option
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="days since a run has last used it",
)
def store_prune(root: Path | None, older_than: float) -> None:
    """Delete what no run has used for a while, trained models too: runs link to those, so copy what you keep."""
    from .store import Store, default_root

    freed = Store(root or default_root()).prune(older_than * 86400)
    click.echo(f"{freed / 1e6:.1f} MB freed")


@cli.command()
def doctor() -> None:
    """Say what this machine and this installation have."""
    from . import doctor as look

    for name, told in look.findings():
        click.echo(f"{name:<24} {told}")


# A place that the user named cannot be used: a mistake, and no fault of the program's.
PLACES = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG}
PLACES |= {errno.ENOSPC, errno.EDQUOT}


def _place(error: OSError) -> str:
    why = (error.strerror or str(error)).lower()
    if error.filename is None:
        return f"what is written finds no place: {why}; what was finished is kept"
    return f"{error.filename} cannot be used: {why}; name another place"


def _in_a_step(error: BaseException) -> bool:
    """Whether a plugin's hook raised it, see calling.caller."""
    return any(note.startswith("in the step") for note in getattr(error, "__notes__", ()))


def _hush() -> None:
    """Nothing more to a stdout that takes nothing more, not even at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_notes(error: BaseException, text: str) -> str:
    return "; ".join([text, *getattr(error, "__notes__", ())])


def main() -> None:
    """Run the command line: a user's mistake is a sentence, a plugin's fault a traceback."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        click.echo(f"Error: {_with_notes(error, str(error))}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo(_with_notes(error.__cause__ or error, "stopped; run the same command again to go on"), err=True)
        sys.exit(130)
    except OSError as error:
        if error.errno not in PLACES or _in_a_step(error):
            raise
        _hush()
        click.echo(f"Error: {_with_notes(error, _place(error))}", err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
