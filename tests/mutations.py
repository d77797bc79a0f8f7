"""What can be changed in a module: one node of its syntax tree at a time."""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["comparison", "operator", "constant", "logic", "negation", "return", "statement"]
Change = tuple[Kind, str, Callable[[], None]]
"""Of which kind, in words, and what makes it."""

COMPARISONS: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.BitXor: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
SILENT = ("annotation", "returns", "decorator_list", "bases")
"""Parts of a definition that do not run, or that set options of a compiler."""


@dataclass(frozen=True)
class Place:
    """One change: the how manieth node of a module's syntax tree, and what becomes of it.

    ``outside``: it runs when the module is imported.
    """

    module: str
    line: int
    node: int
    kind: Kind
    change: str
    outside: bool

    def __str__(self) -> str:
        return f"{self.module.removeprefix('twinpass.').replace('.', '/')}.py:{self.line}: {self.change}"


def places(module: str, source: str) -> list[Place]:
    """All that can be changed in a module."""
    tree = ast.parse(source)
    numbers = {node: number for number, node in enumerate(ast.walk(tree))}
    return [
        Place(module, getattr(node, "lineno", 0), numbers[node], kind, change, outside)
        for node, outside in _running(tree, outside=True)
        for kind, change, _ in _changes(node)
    ]


def mutated(source: str, place: Place) -> ast.Module:
    """The module with one change."""
    tree = ast.parse(source)
    node = list(ast.walk(tree))[place.node]
    (make,) = (make for kind, change, make in _changes(node) if (kind, change) == (place.kind, place.change))
    make()
    return ast.fix_missing_locations(tree)


def announced(source: str, module: str, name: str) -> ast.Module:
    """The module with a call of ``name`` (module, first line, last line) before every statement of its functions."""
    tree = ast.parse(source)
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]:
        for node in list(ast.walk(function)):
            for block in ("body", "orelse", "finalbody"):
                statements = getattr(node, block, None)
                if isinstance(statements, list) and not isinstance(node, ast.ClassDef):
                    setattr(
                        node, block, [each for statement in statements for each in _announced(statement, module, name)]
                    )
    return ast.fix_missing_locations(tree)


def _announced(statement: ast.stmt, module: str, name: str) -> list[ast.stmt]:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return [statement]
    inside = getattr(statement, "body", None)
    last = inside[0].lineno - 1 if inside else statement.end_lineno or statement.lineno
    call = ast.parse(f"{name}({module!r}, {statement.lineno}, {max(last, statement.lineno)})").body
    return [*call, statement]


def _running(node: ast.AST, *, outside: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Nodes that compute something: not annotations, decorators, messages of errors, or types by name."""
    match node:
        case ast.Raise() | ast.JoinedStr():
            return
        case ast.Assign() | ast.Subscript() | ast.If() if outside and not isinstance(
            getattr(node, "value", None), ast.Constant | ast.BinOp
        ):
            return
        case _:
            yield node, outside
    later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for name, value in ast.iter_fields(node):
        if name not in SILENT:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _running(child, outside=outside and not (later and name == "body"))


def _changes(node: ast.AST) -> Iterator[Change]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            other = COMPARISONS[type(op)]
            yield "comparison", _instead(node, op, other), lambda: setattr(node, "ops", [other()])
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            swapped = OPERATORS[type(op)]
            yield "operator", _instead(node, op, swapped), lambda: setattr(node, "op", swapped())
        case ast.BoolOp(op=op):
            joined = ast.Or if isinstance(op, ast.And) else ast.And
            yield "logic", _instead(node, op, joined), lambda: setattr(node, "op", joined())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            twice = ast.UnaryOp(ast.Not(), operand)
            yield "negation", f"{ast.unparse(node)}: no not", lambda: setattr(node, "operand", twice)
        case ast.UnaryOp(op=ast.USub()):
            yield "negation", f"{ast.unparse(node)}: no minus", lambda: setattr(node, "op", ast.UAdd())
        case ast.Constant(value=bool(value)):
            yield "constant", f"{value} -> {not value}", lambda: setattr(node, "value", not value)
        case ast.Constant(value=int(whole)):
            yield "constant", f"{whole} -> {whole + 1}", lambda: setattr(node, "value", whole + 1)
        case ast.Constant(value=float(real)):
            yield "constant", f"{real} -> {2 * real + 1}", lambda: setattr(node, "value", 2 * real + 1)
        case ast.Return(value=ast.expr() as result) if not isinstance(result, ast.Constant):
            yield "return", f"{ast.unparse(node)} -> None", lambda: setattr(node, "value", ast.Constant(None))
        case ast.Expr(value=ast.Call() as call) if "super()" not in ast.unparse(call):
            yield "statement", f"{ast.unparse(node)}: dropped", lambda: setattr(node, "value", ast.Constant(None))
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield (
                "statement",
                f"{ast.unparse(node)}: dropped",
                lambda: setattr(node, "targets", [ast.Name("_", ast.Store())]),
            )
        case _:
            return


def _instead(node: ast.AST, operator: ast.AST, other: type[ast.AST]) -> str:
    return f"{ast.unparse(node)}: {type(operator).__name__} -> {other.__name__}"
