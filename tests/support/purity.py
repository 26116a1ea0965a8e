"""An import contract of our own: what calls itself pure does no I/O and reads no clock.

import-linter's contracts forbid imports by name. Purity needs the opposite, a list of what is
allowed: otherwise `import secrets` passes because no one thought of it. Two more rules:

- A name that is imported for annotations alone (this project imports those plainly) leads to no
  code that runs, so it is not followed.
- Some callables need no import, or come with an allowed module, and still read or write the world:
  `open`, `datetime.now`, `Path.read_text`. A pure module calls none of them.

The contract's list and the docstrings agree: a module whose docstring has the word "pure", or says
"no I/O", is in the list, and each module of the list says so. A package stands for all in it.
"""

import ast
import functools
import re
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

_CLAIM = re.compile(r"\bpure\b|\bno I/O\b", re.IGNORECASE)

_IMPURE_BUILTINS = {"open", "print", "input", "breakpoint", "exec", "eval", "__import__"}

_IMPURE_METHODS = {
    *("now", "today", "utcnow"),  # of datetime and date; the others of Path
    *("cwd", "exists", "expanduser", "glob", "home", "is_dir", "is_file", "iterdir", "lstat"),
    *("mkdir", "open", "read_bytes", "read_text", "rename", "resolve", "rglob", "rmdir", "stat"),
    *("touch", "unlink", "write_bytes", "write_text"),
}


class PureContract(Contract):
    """`modules` import, directly or through others, no module but ours and the `allowed` ones.

    `allowed` has modules, and names of modules as `module.name`: `from module import name` alone is
    then allowed of it.
    """

    type_name = "pure"

    modules = fields.ListField(subfield=fields.StringField())
    allowed = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at every module of the list, and at every claim."""
        faults = list(self._faults(graph))
        return ContractCheck(kept=not faults, metadata={"faults": faults})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line for each fault."""
        for fault in check.metadata["faults"]:
            output.print_error(fault)

    def _faults(self, graph: ImportGraph) -> Iterator[str]:
        ours = {name for name in graph.modules if not graph.is_module_squashed(name)}
        modules, allowed = cast("list[str]", self.modules), cast("list[str]", self.allowed)
        for name in modules:
            if name not in ours:
                yield f"{name}: listed as pure, but there is no such module"
            elif not _claims(name):
                yield f"{name}: listed as pure, but its docstring does not say so"
        listed = {
            module
            for name in modules
            for module in ours
            if module == name or module.startswith(f"{name}.")
        }
        for module in sorted(ours - listed):
            if _claims(module):
                yield f"{module}: its docstring says that it is pure; add it to the list"
        for module in sorted(listed):
            yield from _impurities(module, ours, frozenset(allowed))


def _impurities(pure: str, ours: set[str], allowed: frozenset[str]) -> Iterator[str]:
    """Yield what keeps a module from being pure, each with the shortest chain of imports to it."""
    yield from (f"{pure}:{line}: calls {call}" for line, call in _source(pure).calls)
    chains = {pure: pure}
    queue = deque([pure])
    while queue:
        module = queue.popleft()
        for line, imported, name in _source(module).imports:
            target = next((each for each in (f"{imported}.{name}", imported) if each in ours), None)
            if target is None:
                if imported not in allowed and f"{imported}.{name}" not in allowed:
                    what = f"{imported}.{name}" if name else imported
                    yield f"{chains[module]}:{line}: imports {what}"
            elif target not in chains:
                chains[target] = f"{chains[module]} -> {target}"
                queue.append(target)


class _Source:
    """What a module imports for more than annotations, and which impure callables it calls."""

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.docstring = ast.get_docstring(tree) or ""
        self.imports: list[tuple[int, str, str]] = []
        self.calls: list[tuple[int, str]] = []
        used = None if path.name == "__init__.py" else _used(tree)  # which imports for others
        for node in ast.walk(tree):
            match node:
                case ast.Import():
                    self.imports += [(node.lineno, alias.name, "") for alias in node.names]
                case ast.ImportFrom(module=str(module)):
                    self.imports += [
                        (node.lineno, module, alias.name)
                        for alias in node.names
                        if used is None or (alias.asname or alias.name) in used
                    ]
                case ast.Call(func=ast.Name(id=name)) if name in _IMPURE_BUILTINS:
                    self.calls.append((node.lineno, name))
                case ast.Call(func=ast.Attribute(attr=name)) if name in _IMPURE_METHODS:
                    self.calls.append((node.lineno, name))


def _used(tree: ast.Module) -> set[str]:
    """Return the names that are read outside annotations."""
    annotations: set[int] = set()
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            part = getattr(node, field, None)
            if part is not None:
                annotations.update(id(each) for each in ast.walk(part))
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and id(node) not in annotations
    }


def _claims(module: str) -> bool:
    return bool(_CLAIM.search(_source(module).docstring))


@functools.cache
def _source(module: str) -> _Source:
    root, *rest = module.split(".")
    spec = find_spec(root)  # of the root alone: finding a module below imports what is above it
    assert spec is not None
    assert spec.origin is not None, root
    path = Path(spec.origin).parent.joinpath(*rest)
    return _Source(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
