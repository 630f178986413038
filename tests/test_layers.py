"""The layers of ARCHITECTURE.md, held over the syntax trees of the package."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "caesura"

#: From left to right; a module imports from layers to its left and from its own.
LAYERS = (
    {"errors", "faults", "ids", "logging", "programs", "tars"},
    {"access", "schema", "settings"},
    {"jobs", "tenancy"},
    {"storage", "store"},
    {"data"},
    {"graders"},
    {"models"},
    {"inference"},
    {"training"},
    {"check", "worker"},
    {"deliverer", "examination", "executors", "exporting", "integrations", "scheduler", "validation"},
    {"api"},
    {"app", "cli", "commands", "keys", "protocol"},
)
#: Heavy or narrow packages → the only places that may import them.
IMPORTERS = {
    "torch": {"models", "inference", "training", "worker.warm"},
    "transformers": {"models", "inference", "training"},
    "llguidance": {"inference"},
    "safetensors": {"models", "training"},
    "rapidfuzz": {"graders"},
    "sacrebleu": {"graders"},
    "nltk": {"graders"},
    "rouge_score": {"graders"},
    "wandb": {"integrations.wandb"},
    "mlflow": {"integrations.mlflow"},
    "tensorboard": {"integrations.tensorboard"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "fastapi": {"api", "app"},
    "prometheus_client": {"api"},
    "typer": {"cli", "commands", "keys"},
}


def modules() -> dict[str, ast.Module]:
    trees: dict[str, ast.Module] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if not name.startswith("store.migrations") and name != "__init__":
            trees[name] = ast.parse(path.read_text())
    return trees


MODULES = modules()


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "imports are absolute"
            # `from caesura.store import tables` takes a module out of a package, not something of the package's face.
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in full if is_module(name)}
            names |= submodules if submodules == full else submodules | {node.module}
    return names


def own_imports(name: str) -> set[str]:
    """The modules of the package that the module `name` imports."""
    found = {
        imported.removeprefix("caesura.") for imported in imports(MODULES[name]) if imported.startswith("caesura.")
    }
    return found & MODULES.keys()


def layer_of(name: str) -> int:
    first = name.split(".")[0]
    return next(index for index, layer in enumerate(LAYERS) if first in layer)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_left_and_its_own_layer(name: str) -> None:
    assert not {imported for imported in own_imports(name) if layer_of(imported) > layer_of(name)}


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    graph = {name: own_imports(name) for name in MODULES}
    state: dict[str, str] = defaultdict(str)

    def visit(name: str, path: list[str]) -> None:
        assert state[name] != "open", " → ".join([*path, name])
        if state[name] == "done":
            return
        state[name] = "open"
        for imported in graph[name] - {name}:
            visit(imported, [*path, name])
        state[name] = "done"

    for name in MODULES:
        visit(name, [])


@pytest.mark.parametrize("package", IMPORTERS)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    importers = {name for name, tree in MODULES.items() if any(part.split(".")[0] == package for part in imports(tree))}
    allowed = IMPORTERS[package]

    assert importers, f"nobody imports {package}: take it out of this table"
    assert not {name for name in importers if name.split(".")[0] not in allowed and name not in allowed}


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_imported_inside_a_function(name: str) -> None:
    functions = (node for node in ast.walk(MODULES[name]) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))

    assert not [imported for function in functions for imported in imports(function)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_longer_than_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_longer_than_60_lines(name: str) -> None:
    functions = (node for node in ast.walk(MODULES[name]) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))

    assert not {
        function.name: function.end_lineno - function.lineno + 1
        for function in functions
        if function.end_lineno is not None and function.end_lineno - function.lineno >= 60
    }
