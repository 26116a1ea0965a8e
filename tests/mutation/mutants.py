"""Mutants: one small change each to a comparison, a condition or a guard of the code under test.

Pure. A mutant's name is its file, function, kind and ordinal among its kind in that function; line
numbers are no part of it, so that an explanation in `survivors.toml` outlives edits elsewhere.

    invert   a comparison says the opposite           a < b         a >= b
    shift    its boundary moves by one                a < b         a <= b
    drop     one operand of `and` or `or` is left out  a and b       a
    negate   a condition says the opposite            if f(a):      if not f(a):
    never    an `if` is never taken                   if a: return  if False: return
    filter   a condition of a comprehension is gone   if a          if True
    fence    a transaction compares one thing less    [c, *cs]      [*cs]
    check    a call whose use is to raise is gone     check(a)      pass
"""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import TypeVar

KINDS = ("invert", "shift", "drop", "negate", "never", "filter", "fence", "check")

_INVERSE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_SHIFTED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: of the code `before`, in lines `first` to `last` of `path`, to `after`.

    `original` and `changed` are the compiled code of the outermost function around it.
    """

    name: str
    path: Path
    first: int
    last: int
    before: str
    after: str
    original: CodeType
    changed: CodeType

    @property
    def file(self) -> str:
        """The part of the name that says where the file is."""
        return self.name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node stands in its parent."""

    parent: ast.AST
    field: str
    index: int | None = None

    def put(self, node: ast.AST) -> ast.AST:
        """Put `node` there; returns what stood there before."""
        if self.index is None:
            before: ast.AST = getattr(self.parent, self.field)
            setattr(self.parent, self.field, node)
        else:
            nodes = getattr(self.parent, self.field)
            before, nodes[self.index] = nodes[self.index], node
        return before


@dataclass(frozen=True, slots=True)
class _Change:
    """Something to put at a place: `kind` is its kind, `shown` the code that it is about.

    It matters where the lines of `where` run.
    """

    kind: str
    shown: ast.expr | ast.stmt
    place: _Place
    new: ast.AST
    where: ast.expr | ast.stmt


@dataclass(frozen=True, slots=True)
class _Site:
    """A change in a function `scope`, and the outermost function around it; its mutant's name."""

    name: str
    function: str
    change: _Change


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the whole code under test, by bare names.

    `compares` are, or return, a comparison for a transaction; `checks` return nothing and may
    raise.
    """

    compares: frozenset[str]
    checks: frozenset[str]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Facts":
        """Read them off the signatures and bodies of all functions in `paths`."""
        nodes = [n for path in paths for n in ast.walk(ast.parse(path.read_text("utf-8")))]
        functions = [node for node in nodes if isinstance(node, _Function)]
        variables = {
            target.id
            for node in nodes
            if isinstance(node, ast.Assign) and _called(node.value) == "Compare"
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        return cls(
            frozenset(f.name for f in functions if _returns(f) == "Compare") | variables,
            frozenset(
                f.name
                for f in functions
                if _returns(f) == "None"
                and f.name != "__init__"  # which `super().__init__()` calls in any class
                and any(isinstance(n, ast.Raise) for n in ast.walk(f))
            ),
        )


def find(path: Path, name: str, facts: Facts) -> list[Mutant]:
    """Return the mutants of one file, in the order of its text; `name` stands for it in theirs."""
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    mutants: list[Mutant] = []
    sites = _sites(tree, name, facts)
    originals = {f: _compile(tree, path, f) for f in {site.function for site in sites}}
    seen = set(originals.values())
    for site in sites:
        change = site.change
        before = ast.get_source_segment(source, change.shown) or ""
        old = change.place.put(change.new)
        code = _compile(tree, path, site.function)
        after = ast.unparse(change.shown if isinstance(change.new, ast.cmpop) else change.new)
        change.place.put(old)
        if code in seen:  # what another one does, or nothing at all
            continue
        seen.add(code)
        mutants.append(
            Mutant(
                site.name,
                path,
                first=change.where.lineno,
                last=change.where.end_lineno or change.where.lineno,
                before=_line(before),
                after=_line(after),
                original=originals[site.function],
                changed=code,
            )
        )
    return mutants


def _sites(tree: ast.Module, name: str, facts: Facts) -> list[_Site]:
    counts: Counter[tuple[str, str]] = Counter()
    sites = []
    for scope, function, change in _walk(tree, "", "", facts):
        counts[scope, change.kind] += 1
        number = counts[scope, change.kind]
        sites.append(_Site(f"{name}:{scope}:{change.kind}:{number}", function, change))
    return sites


def _walk(
    node: ast.AST, scope: str, function: str, facts: Facts
) -> Iterator[tuple[str, str, _Change]]:
    """Yield every change within `node`, with its scope and function. Outside of one is none."""
    for field, value in ast.iter_fields(node):
        if isinstance(node, _Function | ast.ClassDef) and field != "body":
            continue  # decorators, defaults and annotations are evaluated when it is defined
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST):
                continue
            if function:
                place = _Place(node, field, index if isinstance(value, list) else None)
                for change in _changes(child, place, facts):
                    yield scope, function, change
            if isinstance(child, _Function | ast.ClassDef):
                inner = f"{scope}.{child.name}".removeprefix(".")
                outer = inner if isinstance(child, _Function) and not function else function
                yield from _walk(child, inner, outer, facts)
            else:
                yield from _walk(child, scope, function, facts)


def _changes(node: ast.AST, place: _Place, facts: Facts) -> Iterator[_Change]:
    """Yield the changes of one node, not of those within it."""
    match node:
        case ast.Compare():
            for kind, table in (("invert", _INVERSE), ("shift", _SHIFTED)):
                for i, op in enumerate(node.ops):
                    if type(op) in table:
                        yield _Change(kind, node, _Place(node, "ops", i), table[type(op)](), node)
        case ast.BoolOp(op, values):
            for i, operand in enumerate(values):
                rest = values[:i] + values[i + 1 :]
                other = rest[0] if len(rest) == 1 else _at(node, ast.BoolOp(op, rest))
                yield _Change("drop", node, place, other, operand)
        case ast.List(elements):
            for i, element in enumerate(elements):
                if _is_compare(element, facts):
                    rest = elements[:i] + elements[i + 1 :]
                    yield _Change(
                        "fence", element, place, _at(node, ast.List(rest, node.ctx)), element
                    )
        case ast.ListComp(element) if _is_compare(element, facts):
            yield _Change("fence", node, place, _at(node, ast.List([], ast.Load())), node)
        case ast.Expr(ast.Call() as call) | ast.Expr(ast.Await(ast.Call() as call)):
            gone = _at(node, ast.Pass())
            if _called(call) in facts.checks:
                yield _Change("check", node, place, gone, node)
            elif _called(call) == "append" and any(_is_compare(a, facts) for a in call.args):
                yield _Change("fence", node, place, gone, node)
        case ast.comprehension():
            for i, condition in enumerate(node.ifs):
                yield from _condition(condition, _Place(node, "ifs", i), "filter")
        case ast.If():
            yield from _condition(node.test, _Place(node, "test"), "never")
        case ast.While() | ast.IfExp():
            yield from _condition(node.test, _Place(node, "test"))
        case ast.match_case(guard=ast.expr() as guard):
            yield from _condition(guard, _Place(node, "guard"), "never")
        case _:
            pass


def _condition(test: ast.expr, place: _Place, kind: str = "") -> Iterator[_Change]:
    """Yield what is done to a condition as a whole."""
    match test:
        case ast.Constant() | ast.Compare(ops=[_]):
            pass  # `while True`, and what is inverted anyway
        case ast.UnaryOp(ast.Not(), operand):
            yield _Change("negate", test, place, operand, test)
        case _:
            yield _Change("negate", test, place, _at(test, ast.UnaryOp(ast.Not(), test)), test)
    if kind:
        yield _Change(kind, test, place, _at(test, ast.Constant(kind == "filter")), test)


_Node = TypeVar("_Node", bound=ast.expr | ast.stmt)


def _at(place: ast.AST, node: _Node) -> _Node:
    """Give a new node the lines of the one whose place it takes."""
    return ast.copy_location(node, place)


def _is_compare(node: ast.expr, facts: Facts) -> bool:
    """Tell whether an expression is a comparison for a transaction, or several."""
    match node:
        case ast.Starred(value=ast.Name(id=name)):
            return "compares" in name
        case ast.Call():
            return _called(node) == "Compare" or _called(node) in facts.compares
        case ast.Attribute(attr=name):
            return name in facts.compares
        case ast.Name(id=name):
            return name in facts.compares
        case _:
            return False


def _called(node: ast.expr) -> str:
    """Return the bare name of what a call calls, empty if it is none."""
    match node:
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return name
        case _:
            return ""


def _returns(function: _Function) -> str:
    return "" if function.returns is None else ast.unparse(function.returns)


def _compile(tree: ast.Module, path: Path, function: str) -> CodeType:
    """Compile the one function of that qualified name."""
    module = ast.fix_missing_locations(ast.Module(_only(tree.body, function.split(".")), []))
    code: CodeType = compile(module, str(path), "exec", dont_inherit=True)
    while code.co_qualname != function:
        code = next(
            inner
            for inner in code.co_consts
            if isinstance(inner, CodeType) and f"{function}.".startswith(f"{inner.co_qualname}.")
        )
    return code


def _only(body: Sequence[ast.stmt], names: Sequence[str]) -> list[ast.stmt]:
    """Return the function of that name, within nothing but the classes around it."""
    name, *inner = names
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == name and inner:
            return [ast.ClassDef(name, [], [], _only(node.body, inner), [])]
        if isinstance(node, _Function) and node.name == name and not inner:
            return [node]
    raise LookupError(f"no function {'.'.join(names)}")


def _line(text: str) -> str:
    return " ".join(text.split())
