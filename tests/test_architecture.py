"""Rules of the source, read from it: imports run one way, each name is defined once, files and functions stay small."""

import ast
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from multiattn.__main__ import STAGES
from multiattn.runtime import layout

SOURCE = Path(__file__).resolve().parents[1] / "src" / "multiattn"

LEVEL_OF_PACKAGE = {
    **dict.fromkeys(("config", "tables", "runtime", "experiments", "command_line"), 0),
    **dict.fromkeys(("scoring", "datasets", "video", "model"), 1),
    **dict.fromkeys(("training", "inference"), 2),
    "evaluation": 3,
    **dict.fromkeys(("figures", "bench"), 4),
    "serve": 5,
    "stages": 6,
    "": 7,
    "__main__": 8,
}
"""`` is the package itself, `multiattn/__init__.py`: it may name anything, and only `__main__` may import it."""
GROUND_FLOOR_NEIGHBOURS = {
    ("experiments", "config"),
    ("command_line", "config"),
    ("command_line", "experiments"),
    ("command_line", "runtime"),
    ("tables", "config"),
    ("command_line", "runtime"),
    ("tables", "runtime"),
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_FILE_LINES, MAX_STAGE_LINES, MAX_FUNCTION_LINES = 450, 160, 60


def module_name(path: Path) -> str:
    parts = ("multiattn", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports(tree: ast.AST, importer: str, *, is_package: bool, modules: set[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of a tree, those inside functions too; `from a import b` is `a.b` where
    that is a module."""
    package = importer.split(".") if is_package else importer.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base


def import_fault(importer: str, imported: str) -> str | None:
    """Why `importer` may not import `imported`; None when it may."""
    if imported.split(".")[0] != "multiattn":
        return None
    mine, other = (f"{name}.".split(".")[1] for name in (importer, imported))
    if mine == other:
        is_other_stage = mine == "stages" and importer != imported and imported != "multiattn.stages"
        return "a stage imports another stage" if is_other_stage and importer != "multiattn.stages.demo" else None
    if LEVEL_OF_PACKAGE[other] > LEVEL_OF_PACKAGE[mine]:
        return "an import runs upwards"
    if LEVEL_OF_PACKAGE[other] == LEVEL_OF_PACKAGE[mine] and (mine, other) not in GROUND_FLOOR_NEIGHBOURS:
        return "a package imports its neighbour"
    return None


def import_faults(source: str, importer: str, *, is_package: bool = False, modules: set[str] | None = None) -> list:
    found = imports(ast.parse(source), importer, is_package=is_package, modules=modules or set(FILES))
    return [f"{importer}:{line} {name}: {fault}" for line, name in found if (fault := import_fault(importer, name))]


def function_lengths(source: str) -> dict[str, int]:
    """Name -> lines of the body, the docstring left out."""
    lengths = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lengths[f"{node.name} (line {node.lineno})"] = body[-1].end_lineno - body[0].lineno + 1 if body else 0
    return lengths


def scoring_faults(source: str) -> list[str]:
    """Uses of torch and of the disk, which a package of numbers has none of."""
    tree = ast.parse(source)
    names = {
        name.split(".")[0] for _, name in imports(tree, "multiattn.scoring.x", is_package=False, modules=set(FILES))
    }
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    methods = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return sorted(
        (names & {"torch", "pathlib", "os", "io", "shutil", "tempfile"})
        | (calls & {"open", "Path"})
        | (methods & {"read_csv", "read_parquet", "to_csv", "to_parquet", "savez", "tofile", "fromfile"})
    )


LAYOUT_FILES = {value for name, value in vars(layout).items() if name.isupper() and "." in str(value)}


def file_name_literals(source: str) -> list[str]:
    """Strings of the code, docstrings aside, that are a file's name of `runtime/layout.py` or make a fold's folder."""
    tree = ast.parse(source)
    ignored = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found += [ast.unparse(node)] if getattr(node.values[0], "value", "") == "fold" else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in ignored:
            is_fold = re.fullmatch(r"(.*/)?fold[0-9*]+(/.*)?", node.value)
            is_file = node.value.rsplit("/", 1)[-1] in LAYOUT_FILES and " " not in node.value
            found += [node.value] if is_fold or is_file else []
    return found


@pytest.mark.parametrize(
    ("importer", "source", "fault"),
    [
        pytest.param("tables", "import multiattn.scoring.metrics", "upwards", id="ground floor to a package"),
        pytest.param("video.crops.recipe", "from multiattn.model import agda", "neighbour", id="package to package"),
        pytest.param("figures.a", "import multiattn.bench", "neighbour", id="figures to their side"),
        pytest.param("model.agda", "from multiattn.training import loop", "upwards", id="first to second"),
        pytest.param("runtime", "from multiattn import config", "neighbour", id="runtime to config"),
        pytest.param("config", "from multiattn.experiments import demo", "neighbour", id="config to its user"),
        pytest.param("training.engine.loop", "from multiattn.stages import train", "upwards", id="package to stage"),
        pytest.param("stages.train", "from multiattn.stages import folds", "another", id="stage to stage"),
        pytest.param("stages.train", "from . import folds", "another", id="relative stage to stage"),
        pytest.param("stages.train", "from multiattn.__main__ import main", "upwards", id="stage to main"),
        pytest.param("datasets.dfdc", "from ..video import decode", "neighbour", id="relative import"),
        pytest.param("datasets.dfdc", "import multiattn", "upwards", id="package to whole"),
        pytest.param(
            "scoring.a",
            "def f():\n    if True:\n        from multiattn.video import b",
            "neighbour",
            id="in a function",
        ),
        pytest.param("config", "", None, id="empty file"),
        pytest.param("config", "import os, torch\nfrom pathlib import Path", None, id="other packages"),
        pytest.param("experiments", "from multiattn.config import Experiment", None, id="experiments to config"),
        pytest.param("tables", "from multiattn.runtime.files import atomic_path", None, id="tables to runtime"),
        pytest.param("video.crops.cache", "from . import recipe", None, id="inside a package"),
        pytest.param("training.engine.loop", "from multiattn.model import agda", None, id="downwards"),
        pytest.param("stages.demo", "from multiattn.stages import train", None, id="demo calls the stages"),
        pytest.param("__main__", "from multiattn.stages import train", None, id="main to a stage"),
    ],
)
def test_the_checker_tells_a_forbidden_import_from_one_that_the_order_allows(importer, source, fault):
    faults = import_faults(source, f"multiattn.{importer}")
    assert len(faults) == (fault is not None)
    assert all(fault in found for found in faults)


def test_the_checker_counts_the_lines_of_a_body_without_its_docstring():
    body = "    x = 1\n" * 61
    assert function_lengths(f'def long():\n    """One.\n\n    Two.\n    """\n{body}') == {"long (line 1)": 61}
    assert function_lengths('def empty():\n    """Only words."""\n') == {"empty (line 1)": 0}
    assert function_lengths("class A:\n    async def one(self):\n        return 1\n") == {"one (line 2)": 1}
    assert function_lengths("") == {}


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("import numpy as np\nimport pandas", [], id="numbers"),
        pytest.param("def f():\n    import torch.nn", ["torch"], id="torch in a function"),
        pytest.param("from pathlib import Path", ["pathlib"], id="pathlib"),
        pytest.param("open('x')", ["open"], id="open"),
        pytest.param("import pandas as pd\npd.read_csv('x')", ["read_csv"], id="a table read"),
    ],
)
def test_the_checker_sees_torch_and_disk(source, faults):
    assert scoring_faults(source) == faults


@pytest.mark.parametrize(
    ("source", "found"),
    [
        pytest.param('run / "oof.parquet"', ["oof.parquet"], id="a file"),
        pytest.param('run.glob("*/card.json")', ["*/card.json"], id="at the end of a path"),
        pytest.param('run / f"fold{k}"', ["f'fold{k}'"], id="a fold's folder"),
        pytest.param('run / "fold0"', ["fold0"], id="one fold"),
        pytest.param('run.glob("fold*/x")', ["fold*/x"], id="all folds"),
        pytest.param('"""faces.json"""\nf"fold {k}: oof.parquet is damaged"', [], id="words"),
    ],
)
def test_the_checker_sees_file_names_that_the_layout_defines(source, found):
    assert file_name_literals(source) == found


def test_every_package_of_the_source_has_a_level():
    assert {f"{module}.".split(".")[1] for module in FILES} == set(LEVEL_OF_PACKAGE)


def test_imports_run_one_way():
    faults = []
    for module, path in FILES.items():
        source = path.read_text(encoding="utf-8")
        faults += import_faults(source, module, is_package=path.name == "__init__.py")
    assert faults == []


def test_only_the_dispatcher_and_the_isolated_process_import_by_name_at_run_time():
    """The dispatcher its stages; the process that a video is extracted in what its parent, `engine`, calls there."""
    users = {module for module, path in FILES.items() if "import_module(" in path.read_text(encoding="utf-8")}
    assert users == {"multiattn.__main__", "multiattn.video.extraction.isolation"}


def test_no_file_is_a_drawer_for_everything():
    assert [module for module in FILES if FORBIDDEN_NAMES & set(module.split("."))] == []


def test_file_names_and_folds_folders_are_defined_once():
    found = {module: file_name_literals(path.read_text(encoding="utf-8")) for module, path in FILES.items()}
    assert {module: names for module, names in found.items() if names and module != layout.__name__} == {}


def test_files_keep_within_their_lines():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in FILES.items()}
    limits = {module: MAX_STAGE_LINES if ".stages." in module else MAX_FILE_LINES for module in FILES}
    assert {module: lines for module, lines in lengths.items() if lines > limits[module]} == {}


def test_function_bodies_keep_within_their_lines():
    too_long = {
        f"{module}.{name}": lines
        for module, path in FILES.items()
        for name, lines in function_lengths(path.read_text(encoding="utf-8")).items()
        if lines > MAX_FUNCTION_LINES
    }
    assert too_long == {}


def test_scoring_knows_neither_torch_nor_the_disk():
    files = sorted((SOURCE / "scoring").glob("*.py"))
    assert len(files) >= 3
    assert [fault for path in files for fault in scoring_faults(path.read_text(encoding="utf-8"))] == []


def test_every_file_with_code_says_what_it_is_for():
    silent = []
    for module, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            silent.append(module)
    assert silent == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_documented_module_with_a_main(stage):
    module = importlib.import_module(f"multiattn.stages.{stage}")
    assert module.__doc__
    assert f"multiattn {stage.replace('_', '-')}" in module.__doc__, "the docstring shows the command"
    assert list(inspect.signature(module.main).parameters) == ["argv"]


def test_no_stage_is_missing_from_the_dispatcher():
    modules = {path.stem for path in (SOURCE / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)


def test_every_test_file_has_a_name_of_its_own():
    """pytest takes two of one name, in folders without `__init__.py`, for one module."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


LIBRARIES = ("torch", "numpy", "pandas", "cv2", "av", "sklearn", "scipy", "timm", "albumentations", "pyarrow", "os")


def unknown_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each `library.name` that the library does not have, classes' own names among them."""
    roots = {}
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, ast.Import) else ():
            name = alias.name if alias.asname else alias.name.split(".")[0]
            if name.split(".")[0] in LIBRARIES:
                roots[alias.asname or name] = name
    for node in ast.walk(tree):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts, inner = [inner.attr, *parts], inner.value
        if not parts or not isinstance(inner, ast.Name) or inner.id not in roots:
            continue
        found, name = importlib.import_module(roots[inner.id]), roots[inner.id]
        for part in parts:
            if not inspect.ismodule(found) and not inspect.isclass(found):
                break
            name = f"{name}.{part}"
            if not hasattr(found, part):
                try:
                    importlib.import_module(name)
                except ImportError:
                    yield node.lineno, name
                    break
            found = getattr(found, part)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("import torch\ntorch.cuda.get_device_name(0)", [], id="a name that is there"),
        pytest.param("import torch\ntorch.cuda.getdevice_name(0)", [(2, "torch.cuda.getdevice_name")], id="misspelt"),
        pytest.param("import numpy as np\nnp.ndarray.shap", [(2, "numpy.ndarray.shap")], id="of a class"),
        pytest.param("import torch\ntorch.onnx.export(x).anything", [], id="of what a call gives"),
    ],
)
def test_a_name_that_a_library_lacks_is_found(source, expected):
    assert list(unknown_names(ast.parse(source))) == expected


def test_every_name_taken_of_a_library_is_one_it_has():
    """Lines for a GPU are run by no test here."""
    found = [(module, *line) for module, path in FILES.items() for line in unknown_names(ast.parse(path.read_text()))]
    assert found == []
