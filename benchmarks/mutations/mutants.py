"""The faults that cosmic-ray can plant into some files, without those that prove nothing, and a lot among them."""

import ast
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.work_item import MutationSpec

Span = tuple[tuple[int, int], tuple[int, int]]
_FAMILIES = (  # an operator is replaced by one of its own: numbers have no `|`, and `x is None` is `x == None`
    ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"),
    ("BitOr", "BitAnd", "BitXor", "LShift", "RShift"),
    ("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"),
    ("Is", "IsNot"),
)


def mutants_of(paths: Sequence[Path]) -> list[MutationSpec]:
    """All mutations of the files by all operators that need no argument, in a fixed order.

    Args:
        paths: Python files.

    Returns:
        The mutations. Those of annotations are left out, which a type checker reads and no test does. So are those that
        replace an operator by one of another family.
    """
    spans = {str(path): list(_annotations(path)) for path in paths}
    items = (mutation for item in _all_work_items(sorted(paths), {}) for mutation in item.mutations)
    return [
        one
        for one in items
        if _is_of_one_family(one.operator_name) and not any(_within(one, s) for s in spans[str(one.module_path)])
    ]


def drawn_by_lot(mutants: Sequence[MutationSpec], count: int, seed: int) -> list[MutationSpec]:
    """So many mutants, each at another place. A place with many replacements counts like one with a single one.

    Args:
        mutants: All mutants.
        count: How many to draw.
        seed: Of the lot.

    Returns:
        The mutants in the order of the draw.
    """
    places: dict[tuple[str, tuple[int, ...]], list[MutationSpec]] = {}
    for one in mutants:
        places.setdefault((str(one.module_path), tuple(one.start_pos)), []).append(one)
    lot = random.Random(seed)
    return [lot.choice(some) for some in lot.sample(list(places.values()), count)]


def _is_of_one_family(operator_name: str) -> bool:
    name, *words = operator_name.removeprefix("core/").split("_")
    if name not in ("ReplaceBinaryOperator", "ReplaceComparisonOperator"):
        return True
    return any(set(words) <= set(family) for family in _FAMILIES)


def _annotations(path: Path) -> Iterator[Span]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        given = [getattr(node, name, None) for name in ("annotation", "returns")]
        for part in given:
            if isinstance(part, ast.expr):
                yield _span(part)
        if isinstance(node, ast.Assign) and not node.col_offset and isinstance(node.value, ast.BinOp | ast.Subscript):
            name = node.targets[0]
            if isinstance(name, ast.Name) and name.id[:1].isupper():
                yield _span(node.value)  # the name of a type, such as `Key = str | int`


def _span(node: ast.expr) -> Span:
    return (node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)


def _within(mutation: MutationSpec, span: Span) -> bool:
    return span[0] <= tuple(mutation.start_pos) and tuple(mutation.end_pos) <= span[1]
