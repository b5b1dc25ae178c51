"""`select where`: the rows of which a condition on columns is true."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
from siftune import Method, Samples, Selection, UserError, hookimpl

if TYPE_CHECKING:
    from sqlglot.expressions import Column, Expr

# What a condition is made of, by sqlglot's names, and the arrow function that computes it. Both know three
# answers: what is compared with a missing value is neither true nor false.
COMPUTED = {
    "EQ": "equal",
    "NEQ": "not_equal",
    "LT": "less",
    "LTE": "less_equal",
    "GT": "greater",
    "GTE": "greater_equal",
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Neg": "negate",
}
JOINED = {"And": "and_kleene", "Or": "or_kleene", "Not": "invert"}
EXAMPLE = "ifd < 1 and input.source = 'dolly'"
READ = ("Column", "Identifier", "Literal", "Boolean", "Null", "Paren", "In", "Between", "Is", "Like")


class Where(Method):
    """The rows of which a condition is true, in the order of their ids.

    The language is what stands behind WHERE in SQL: and, or, not, = != < <= > >=, in (...), between, like,
    is null, + - * /. Text stands in quotes, a name with a hyphen in backticks. Of a missing value nothing is
    true but `is null`.
    """

    condition: Annotated[str, f"what has to be true of a row, such as {EXAMPLE}"]

    def __post_init__(self) -> None:
        for part in _parsed(self.condition).walk():
            kind = type(part).__name__
            if kind not in (*COMPUTED, *JOINED, *READ) or (kind == "In" and not part.expressions):
                raise ValueError(f"{self.condition!r}: {part.sql('mysql')} cannot be part of a condition")
        if not self.needs():
            raise ValueError(f"{self.condition!r} names no column")

    def needs(self) -> list[str]:
        from sqlglot.expressions import Column

        return sorted({_name(column) for column in _parsed(self.condition).find_all(Column)})

    @hookimpl
    def select(self, samples: Samples) -> Selection:
        import pyarrow as pa

        try:
            held = _truth(_parsed(self.condition), samples).fill_null(False).to_numpy(zero_copy_only=False)
        except pa.ArrowException as error:
            said = str(error).splitlines()[0]
            raise UserError(f"select where: {self.condition!r} compares what cannot be: {said}") from error
        reason = f"not true: {self.condition}"
        return Selection(np.flatnonzero(held), left_out=dict.fromkeys(np.flatnonzero(~held).tolist(), reason))


def _parsed(condition: str) -> Expr:
    """The condition as a tree. MySQL's dialect: both kinds of quotes mean text, and backticks a name."""
    from sqlglot import parse_one
    from sqlglot.errors import SqlglotError
    from sqlglot.expressions import Condition

    try:
        return parse_one(condition, read="mysql", into=Condition)
    except SqlglotError as error:
        raise ValueError(f"{condition!r} is no condition; write one like {EXAMPLE}") from error


def _name(column: Column) -> str:
    """`input.source` is read as a table and a column of it; here it is one name."""
    return ".".join(part.name for part in column.parts)


def _values(samples: Samples, name: str) -> Any:
    import pyarrow as pa

    values = samples.column(name)
    return pa.array(values, mask=np.isnan(values) if values.dtype.kind == "f" and values.ndim == 1 else None)


def _truth(node: Expr, samples: Samples) -> Any:
    """True, false or null for each row."""
    import pyarrow as pa

    return _value(node, samples).cast(pa.bool_())


def _value(node: Expr, samples: Samples) -> Any:
    """What a part of the condition is for each row: an arrow array, or a scalar that is the same for all."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, parts = type(node).__name__, list(node.iter_expressions())
    if kind in JOINED:
        return pc.call_function(JOINED[kind], [_truth(part, samples) for part in parts])
    match kind:
        case "Column":
            return _values(samples, _name(cast("Column", node)))
        case "Literal":
            return pa.scalar(node.this if node.is_string else float(node.this))
        case "Boolean":  # a column holds true and false as 1 and 0
            return pa.scalar(float(node.this))
        case "Null":
            return pa.scalar(None)
    first, *others = (_value(part, samples) for part in parts)
    match kind:
        case "Paren":
            return first
        case "Between":
            return pc.and_kleene(pc.greater_equal(first, others[0]), pc.less_equal(first, others[1]))
        case "Is":
            null = others[0].as_py() is None
            return pc.is_null(first) if null else pc.equal(first, others[0]).fill_null(False)
        case "Like":
            return pc.match_like(first, others[0].as_py())
        case "In":  # not arrow's is_in: for it a missing value is outside of every list
            return reduce(pc.or_kleene, [pc.equal(first, one) for one in others])
    return pc.call_function(COMPUTED[kind], [first, *others])
