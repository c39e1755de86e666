"""What a function's syntax tree tells: its functions, its imports, what it uses of `api`. Walks without recursion."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_CATCHES_IMPORT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True, slots=True)
class Definition:
    """A function of the file's own level. `needs_names`: arguments that can be given by name only, and must be."""

    line: int
    is_generator: bool
    needs_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Import:
    """One import, by its topmost name; empty: from beside the file. `optional`: it may fail, and is caught."""

    line: int
    module: str
    optional: bool


@dataclass
class Facts:
    """What was found. `names`: every name of the file's own level, and its line; `uses`: of `api`, one or two names
    deep; `own_api`: the line where `api` gets another meaning, or 0; `star`: it takes in names that nobody knows."""

    functions: dict[str, Definition] = field(default_factory=dict)
    async_functions: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)
    names: dict[str, int] = field(default_factory=dict)
    imports: list[Import] = field(default_factory=list)
    uses: list[tuple[int, str]] = field(default_factory=list)
    own_api: int = 0
    star: bool = False


def read(tree: ast.Module) -> Facts:
    """Everything at once."""
    facts = Facts()
    _read_level(tree, facts)
    inner: set[int] = set()
    todo: list[tuple[ast.AST, bool]] = [(tree, False)]
    while todo:
        node, optional = todo.pop()
        _read_imports(node, facts, optional=optional)
        _read_api(node, facts, inner)
        if isinstance(node, ast.Try | ast.TryStar) and any(map(_catches_import, node.handlers)):
            todo += [(child, True) for child in node.body]
            todo += [(child, optional) for child in (*node.handlers, *node.orelse, *node.finalbody)]
        elif isinstance(node, ast.If) and _is_for_types(node.test):
            todo += [(child, optional) for child in node.orelse]
        else:
            todo += [(child, optional) for child in ast.iter_child_nodes(node)]
    facts.uses.sort()
    facts.imports.sort(key=lambda each: (each.line, each.module))
    return facts


def _read_level(tree: ast.Module, facts: Facts) -> None:
    """The names of the file's own level: also below `if` and `try`, not in functions and classes."""
    for node in _of_scope(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.FunctionDef):
            facts.functions[node.name] = _definition(node)
        elif isinstance(node, ast.AsyncFunctionDef):
            facts.async_functions.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            facts.constants |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            facts.names[node.name] = line
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            facts.names[node.id] = line
        elif isinstance(node, ast.Import | ast.ImportFrom):
            facts.star = facts.star or any(alias.name == "*" for alias in node.names)
            facts.names |= {(alias.asname or alias.name).split(".")[0]: line for alias in node.names}
    if "api" in facts.names:
        facts.own_api = facts.names["api"] or 1


def _of_scope(scope: ast.AST) -> Iterator[ast.AST]:
    """Every node of a scope, in the order of the text; of the scopes in it only their heads."""
    todo = list(reversed(list(ast.iter_child_nodes(scope))))
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, _SCOPES):
            todo += reversed(list(ast.iter_child_nodes(node)))


def _definition(node: ast.FunctionDef) -> Definition:
    arguments = node.args
    needed = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    names = tuple(argument.arg for argument, maybe_default in needed if maybe_default is None)
    body = (inner for statement in node.body for inner in (statement, *_below(statement)))
    yields = any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in body)
    return Definition(node.lineno, yields and not node.decorator_list, () if node.decorator_list else names)


def _below(node: ast.AST) -> Iterator[ast.AST]:
    return iter(()) if isinstance(node, _SCOPES) else _of_scope(node)


def _read_imports(node: ast.AST, facts: Facts, *, optional: bool) -> None:
    if isinstance(node, ast.Import):
        facts.imports += [Import(node.lineno, alias.name.split(".")[0], optional) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        module = "" if node.level else (node.module or "").split(".")[0]
        facts.imports.append(Import(node.lineno, module, optional))


def _read_api(node: ast.AST, facts: Facts, inner: set[int]) -> None:
    """`api.tor.connect` is one use, not two. `inner`: nodes that are a part of one."""
    if not isinstance(node, ast.Attribute) or id(node) in inner:
        return
    if _is_api(node.value):
        facts.uses.append((node.lineno, node.attr))
    elif isinstance(node.value, ast.Attribute) and _is_api(node.value.value):
        inner.add(id(node.value))
        facts.uses.append((node.lineno, f"{node.value.attr}.{node.attr}"))


def _is_api(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "api"


def _catches_import(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in _CATCHES_IMPORT) for kind in kinds)


def _is_for_types(test: ast.AST) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
