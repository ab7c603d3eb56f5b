"""The house rules that a machine can check: who may import whom, and how long things may get (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES = 400, 60
JUNK_DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc"}

CORE = {"model.types", "model.tokens", "model.config"}
# layer -> layers it may import from, itself included; a module's layer is found by `layer_of`
MAY_IMPORT = {
    "core": {"core"},
    "model": {"core", "model"},
    "distributed": {"core", "distributed"},
    "data": {"core", "distributed", "data"},
    "inference": {"core", "distributed", "data", "model", "inference"},
    "train": {"core", "distributed", "data", "model", "inference", "train"},
    "script": {"core", "distributed", "data", "model", "inference", "train", "script"},
}
PACKAGES = {"utils.data": "data", "utils.eval": "inference", "utils.infer": "inference", "utils.train": "train", "utils.distributed": "distributed"}

SCRIPTS = sorted(ROOT.glob("*.py"))
LIBRARY = sorted(path for folder in ("model", "utils") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted module name, e.g. `utils.data.records`; a package's __init__ has the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in SCRIPTS + LIBRARY}


def layer_of(module: str) -> str | None:
    """The layer of one of our modules (nobody may import from `tests`); None for anybody else's."""
    if module in CORE:
        return "core"
    if module == "model" or module.startswith("model."):
        return "model"
    for package, layer in PACKAGES.items():
        if module == package or module.startswith(package + "."):
            return layer
    if module in {path.stem for path in SCRIPTS}:
        return "script"
    return "tests" if module.split(".")[0] == "tests" else None


def imports_of(tree: ast.AST, module: str) -> Iterator[str]:
    """Dotted names that `module` imports anywhere, in functions too; relative ones made absolute."""
    is_package = (ROOT / module.replace(".", "/") / "__init__.py").is_file()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*package, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES or full in CORE else base


def forbidden_imports(source: str, module: str) -> list[str]:
    layer = layer_of(module)
    allowed = MAY_IMPORT[layer] if layer else set()  # no layer: utils/__init__.py, which imports nothing of ours
    found = [(name, layer_of(name)) for name in imports_of(ast.parse(source), module)]
    return [f"{module} ({layer}) imports {name} ({target})" for name, target in found if target is not None and target not in allowed]


def functions_of(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def too_long(source: str, name: str) -> list[str]:
    lines = len(source.splitlines())
    problems = [f"{name} has {lines} lines, at most {FILE_LINES} are allowed"] if lines > FILE_LINES else []
    for function in functions_of(source):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES:
            problems.append(f"{name}:{function.lineno} {function.name} has {length} lines, at most {FUNCTION_LINES} are allowed")
    return problems


def unannotated(source: str, name: str) -> list[str]:
    problems = []
    for function in functions_of(source):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        missing = [a.arg for a in named if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
        if function.returns is None:
            missing.append("return")
        if missing:
            problems.append(f"{name}:{function.lineno} {function.name} lacks annotations: {missing}")
    return problems


@pytest.mark.parametrize("path", SCRIPTS + LIBRARY, ids=name_of)
def test_layers(path: Path) -> None:
    assert forbidden_imports(path.read_text(), name_of(path)) == []


@pytest.mark.parametrize("path", SCRIPTS + LIBRARY + TESTS, ids=name_of)
def test_length(path: Path) -> None:
    assert too_long(path.read_text(), name_of(path)) == []


@pytest.mark.parametrize("path", SCRIPTS + LIBRARY, ids=name_of)
def test_annotations(path: Path) -> None:
    assert unannotated(path.read_text(), name_of(path)) == []


def test_no_junk_drawers() -> None:
    assert [str(path) for path in LIBRARY if path.stem in JUNK_DRAWERS] == []


def test_one_loose_file_in_utils() -> None:
    assert {path.stem for path in (ROOT / "utils").glob("*.py")} <= {"__init__", "distributed"}


@pytest.mark.parametrize(
    ("module", "source", "target"),
    [
        ("model.sida", "from utils.data.records import Record", "data"),
        ("model.types", "from model import sida", "model"),
        ("model.tokens", "def f():\n    from . import sida", "model"),
        ("model.sida", "import utils.distributed", "distributed"),
        ("utils.data.records", "import model.sida", "model"),
        ("utils.data.records", "from model import SidaModel", "model"),
        ("utils.data.records", "from ..eval import metrics", "inference"),
        ("utils.eval.metrics", "from utils.train import trainer", "train"),
        ("utils.distributed", "from utils.data import collate", "data"),
        ("utils.data.records", "from tests.tiny import build_tiny_lisa", "tests"),
        ("utils", "from model.sida import SidaModel", "model"),
    ],
)
def test_the_check_finds(module: str, source: str, target: str) -> None:
    (problem,) = forbidden_imports(source, module)
    assert problem.endswith(f"({target})")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.sida", "from .types import Batch\nfrom model import tokens\nimport torch"),
        ("utils.data.records", "from model.types import Label\nfrom utils import distributed\nfrom utils.data import sampler"),
        ("utils.infer.pipeline", "from model.sida import SidaModel\nfrom utils.data import conversation\nfrom ..eval import metrics"),
        ("utils.train.trainer", "from utils.infer import pipeline\nfrom utils.distributed import rank"),
    ],
)
def test_the_check_allows(module: str, source: str) -> None:
    assert forbidden_imports(source, module) == []


def test_the_budget_checks_find() -> None:
    assert too_long("x = 1\n" * 401, "m") == ["m has 401 lines, at most 400 are allowed"]
    assert too_long("def f():\n" + "    x = 1\n" * 60, "m") == ["m:1 f has 61 lines, at most 60 are allowed"]
    assert unannotated("class A:\n    def f(self, a, *b: int, c=1): pass", "m") == ["m:2 f lacks annotations: ['a', 'c', 'return']"]
    assert unannotated("class A:\n    def f(self, a: int, **b: int) -> None: pass", "m") == []
