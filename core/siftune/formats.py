"""Instruction data in and out: JSON, JSONL, Parquet and hub data sets, each with gzip or zstd where files allow it."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from . import shapes
from .errors import UserError, near
from .samples import Array, Pool, Sample
from .shapes import BadRow, Row, Shape

OnBadRow = Literal["stop", "leave-out"]
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")


class NoShape(BadRow):
    """A row whose fields are those of no shape."""


@dataclass
class Source:
    """The rows of a pool as they were read: what they came with, in which shape, and where they stood."""

    rows: list[Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # from 1; the line in a JSONL file; counts on over several files
    row_shapes: list[Shape] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    _names: list[str] | None = None

    def column_names(self) -> list[str]:
        """The columns that rows came with, beside what makes the sample."""
        if self._names is None:
            names: dict[str, None] = {}
            for row, shape in zip(self.rows, self.row_shapes, strict=True):
                if not names.keys() >= row.keys():
                    names.update(dict.fromkeys(name for name in row if name not in shape.own))
            self._names = list(names)
        return self._names

    def text_names(self) -> list[str]:
        """Those of the columns whose first values are texts."""
        return [name for name in self.column_names() if isinstance(self._first(name), str)]

    def _first(self, name: str) -> Any:
        return next((value for row in self.rows[:1000] if (value := row.get(name)) is not None), None)

    def column(self, name: str, total: int) -> Array:
        """The values of such a column, padded to `total` rows: float64 with NaN, or objects with None."""
        values = [row.get(name) for row in self.rows] + [None] * (total - len(self.rows))
        if any(v is not None for v in values) and all(v is None or isinstance(v, (int, float)) for v in values):
            return np.array([np.nan if v is None else v for v in values], np.float64)
        filled = np.empty(total, object)
        filled[:] = values
        return filled


def read(
    paths: Sequence[str],
    *,
    shape: str = "",
    on_bad_row: OnBadRow = "stop",
    limit: int | None = None,
) -> Pool:
    """Read files and `hf://org/name[@revision][:split]` data sets into one pool, in order.

    `shape` says how rows are to be read (detected from the first row where empty), `limit` stops after so many
    rows. Raises UserError that names file and row; with `on_bad_row="leave-out"` malformed rows are kept in
    `pool.source.rejected` instead.
    """
    wanted = shapes.named(shape) if shape else None
    source, samples = Source(paths=list(paths)), list[Sample]()
    offset = 0
    for path in paths:
        last = 0
        for number, raw in _rows(path):
            if limit is not None and len(samples) + len(source.rejected) >= limit:
                break
            last = number
            try:
                if isinstance(raw, BadRow):
                    raise raw
                sample, found = _sample(raw, wanted)
            except BadRow as problem:
                if on_bad_row == "stop":
                    # the first row stands for all: there is nothing to leave out
                    alone = isinstance(problem, NoShape) and not samples
                    advice = "" if alone else ". Mend the row, or leave such rows out: --on-bad-row leave-out"
                    raise UserError(f"{path}, row {number}: {problem}{advice}") from None
                kept = {"file": str(path), "row": number, "reason": str(problem)}
                source.rejected.append(kept | {"text": _shown(raw)})
                continue
            samples.append(sample)
            source.rows.append(raw)
            source.numbers.append(offset + number)
            source.row_shapes.append(found)
        if not last and limit != 0 and (limit is None or len(samples) < limit):
            raise UserError(f"{path} holds no rows")
        offset += last
    if not samples and source.rejected:
        first = source.rejected[0]
        raise UserError(f"no row of {', '.join(paths)} can be read; the first: row {first['row']} {first['reason']}")
    return Pool(samples, source)


def from_rows(rows: Iterable[Sample | Row]) -> Pool:
    """A pool of rows made in Python. Raises UserError with the number of a malformed one."""
    source, samples = Source(), list[Sample]()
    for number, row in enumerate(rows, 1):
        if isinstance(row, Sample):
            sample, found = row, shapes.SHAPES["messages"]
            row = found.write(sample)
        else:
            try:
                sample, found = _sample(row, None)
            except BadRow as problem:
                raise UserError(f"row {number}: {problem}") from None
        samples.append(sample)
        source.rows.append(row)
        source.numbers.append(number)
        source.row_shapes.append(found)
    return Pool(samples, source)


def _sample(raw: Any, wanted: Shape | None) -> tuple[Sample, Shape]:
    if not isinstance(raw, Mapping):
        raise BadRow(f"is {shapes._kind(raw)}, not an object with fields")
    shape = wanted or shapes.detect(raw)
    if shape is None:
        columns = ", ".join(map(str, list(raw)[:8])) or "no columns"
        raise NoShape(
            f"has {columns}; none of the formats that can be read: {shapes.expected()}; "
            "rename the fields to those of one"
        )
    missing = [key for key in shape.keys if key not in raw]
    if missing:
        raise BadRow(f"has no field {missing[0]!r}, which {shape.name} rows have")
    try:
        return shape.read(raw), shape
    except UnicodeEncodeError as error:
        raise BadRow(f"holds half a surrogate pair, which is no text, at character {error.start}") from None


def _shown(raw: Any) -> str:
    if isinstance(raw, BadRow):
        return str(raw.__context__ or "")[:200]
    text = json.dumps(raw, ensure_ascii=True, default=str)
    return text if len(text) <= 2000 else text[:2000] + "..."


def _rows(path: str) -> Iterator[tuple[int, Any]]:
    """(row number from 1, row), where a row that cannot be parsed is a BadRow."""
    if path.startswith("hf://"):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[^:]+)?(:.+)?", path[5:]):
            raise UserError(f"{path} names no data set; write hf://org/name[@revision][:split]")
        yield from enumerate(_hub(path[5:]), 1)
        return
    file = Path(path).expanduser()
    if not file.is_file():
        if file.is_dir():
            raise UserError(f"{path} is a folder; name the files in it: {path.rstrip('/')}/*.jsonl")
        beside = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f"there is no file {path}.{near(file.name, beside)}")
    if not file.stat().st_size:
        raise UserError(f"{path} is empty")
    name = file.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        yield from enumerate(_parquet(file), 1)
        return
    if name.endswith((".csv", ".tsv")):
        how = f"pandas.read_csv({path!r}{', sep=chr(9)' if name.endswith('.tsv') else ''})"
        jsonl = f"{name[:-4]}.jsonl"
        raise UserError(
            f"{path} is a table of text; make JSONL of it: "
            f'python -c "import pandas; {how}.to_json({jsonl!r}, orient=\'records\', lines=True)"'
        )
    try:
        with _opened(file) as stream:
            yield from _json(stream, path)
    except (OSError, EOFError, _zstd_error()) as error:
        raise UserError(f"{path} cannot be read to its end: {error}") from error


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


def _opened(file: Path) -> Any:
    if file.suffix == ".gz":
        return gzip.open(file, "rb")
    if file.suffix == ".zst":
        import zstandard

        return io.BufferedReader(_Zstd(file.open("rb"), zstandard.ZstdDecompressor(max_window_size=2**31)))
    return file.open("rb")


class _Zstd(io.RawIOBase):
    """What a zstd file says, frame after frame. A frame that is cut off is an EOFError; the library's own reader
    takes it for the end."""

    def __init__(self, file: IO[bytes], decompressor: Any) -> None:
        self.file, self.decompressor = file, decompressor
        self.frame: Any = None
        self.packed, self.plain = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self.plain:
            self.packed = self.packed or self.file.read(1 << 16)
            if not self.packed and self.frame is None:
                return 0
            if not self.packed:
                raise EOFError("the file is cut off")
            self.frame = self.frame or self.decompressor.decompressobj()
            self.plain = self.frame.decompress(self.packed)
            self.packed = self.frame.unused_data
            if self.frame.eof:
                self.frame = None
        count = min(len(into), len(self.plain))
        into[:count], self.plain = self.plain[:count], self.plain[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def _json(stream: IO[bytes], path: str) -> Iterator[tuple[int, Any]]:
    head = b""
    while not head.strip():
        more = stream.read(1 << 16)
        if not more:
            raise UserError(f"{path} is empty")
        head += more
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16; save it as UTF-8")
    head = head.removeprefix(b"\xef\xbb\xbf")
    first = head.lstrip()[:1]
    if first == b"[":
        yield from _json_array(head + stream.read(), path)
    elif first == b"{":
        head = _lines_or_one(head, stream, path)
        yield from _json_lines(head, stream)
    else:
        shown = head[:20].decode("utf-8", "backslashreplace")
        raise UserError(f"{path} is neither JSON, JSONL nor Parquet: it begins with {shown!r}")


def _lines_or_one(head: bytes, stream: IO[bytes], path: str) -> bytes:
    """What was read so far. Raises UserError where all of it is one object over several lines."""
    first, ended, _ = head.lstrip().partition(b"\n")
    if not ended or first.rstrip().endswith(b"}"):
        return head
    head += stream.read()
    try:
        names = ", ".join(list(json.loads(head))[:8])
    except (ValueError, RecursionError):
        return head
    raise UserError(f"{path} is one object ({names}); wanted is a list of rows, or JSONL: one row in a line")


def _json_array(text: bytes, path: str) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read") from None
    yield from enumerate(rows, 1)


def _json_lines(head: bytes, stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    number = 0
    for line in _lines(head, stream):
        number += 1
        if not line.strip():
            continue
        problem = None
        try:
            yield number, json.loads(line)
        except UnicodeDecodeError as error:
            problem = BadRow(f"is not UTF-8: byte {error.start}")
        except json.JSONDecodeError as error:
            problem = BadRow(f"is not JSON: column {error.colno}: {error.msg}")
        except RecursionError:
            problem = BadRow("is nested too deeply to be read")
        except ValueError as error:  # a number with thousands of digits
            problem = BadRow(f"cannot be read: {str(error).partition(';')[0]}")
        if problem is not None:
            problem.__context__ = ValueError(line[:200].decode("utf-8", "backslashreplace"))
            yield number, problem


def _lines(head: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of what was looked at already and of the rest; only a line feed ends one."""
    *whole, rest = head.split(b"\n")
    yield from whole
    for line in stream:
        yield (rest + line).removesuffix(b"\n")
        rest = b""
    if rest:
        yield rest


def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is not a Parquet file that can be read: {error}") from error


def _hub(reference: str) -> Iterator[Any]:
    """Rows of `org/name[@revision][:split]`, streamed through `datasets`."""
    try:
        import datasets
    except ImportError:
        raise UserError("hub data sets need the package datasets: pip install 'siftune[hub]'") from None
    name, _, split = reference.partition(":")
    name, _, revision = name.partition("@")
    try:
        rows = datasets.load_dataset(name, split=split or "train", revision=revision or None, streaming=True)
        yield from rows
    except UserError:
        raise
    except Exception as error:  # the library raises a different class for each way in which a hub can fail
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"hf://{reference} cannot be read: {reason}") from error


def write(pool: Pool, path: Path, rows: Iterable[int], format: str = "") -> Path:
    """Write rows of the pool to JSON, JSONL or Parquet (by the file's name), in the shape that they came in.

    Originals are written as they were read, unknown columns and all; rewrites in the shape of the first row.
    `format` names another shape for all of them.
    """
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if not name.endswith(SUFFIXES):
        raise UserError(f"{path}: siftune writes {', '.join(SUFFIXES)}, the JSON kinds also as .gz or .zst")
    wanted = shapes.named(format) if format else None
    written = [_row(pool, int(row), wanted) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            pq.write_table(pa.Table.from_pylist(_same_keys(written)), path)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(
                f"{path}: a column mixes types, which Parquet cannot hold; write .jsonl ({error})"
            ) from error
        return path
    if name.endswith(".json"):
        data: Iterable[bytes] = [_encoded(written, indent=2)]
    else:
        data = (_encoded(row) for row in written)
    with _writing(path) as stream:
        for chunk in data:
            stream.write(chunk)
    return path


def _encoded(value: Any, indent: int | None = None) -> bytes:
    try:
        return (json.dumps(value, ensure_ascii=False, indent=indent, default=str) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair in a column that is not ours: escaped, as it was read
        return (json.dumps(value, ensure_ascii=True, indent=indent, default=str) + "\n").encode()


def _same_keys(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # pyarrow takes the columns of the first row alone
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _writing(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "wb")
    if path.suffix == ".zst":
        import zstandard

        return zstandard.ZstdCompressor(level=10).stream_writer(path.open("wb"))
    return path.open("wb")


def _row(pool: Pool, row: int, wanted: Shape | None) -> dict[str, Any]:
    source, sample = pool.source, pool.samples[row]
    if source is None or row >= len(source.rows):
        first = source.row_shapes[0] if source and source.row_shapes else shapes.SHAPES["messages"]
        return (wanted or first).write(sample)
    shape = source.row_shapes[row]
    if wanted is None or wanted is shape:
        return dict(source.rows[row])
    extra = {name: value for name, value in source.rows[row].items() if name not in (*shape.own, *wanted.own)}
    return wanted.write(sample) | extra
