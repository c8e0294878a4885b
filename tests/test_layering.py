"""The tree keeps its promises: one-way imports, no torch in device headers, no code from data."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A layer may import itself and what stands before it; the entries are module prefixes.
LAYERS = [
    ("seekernel._version", "seekernel._C", "seekernel._extension", "seekernel.env", "seekernel.errors"),
    ("seekernel.jit", "seekernel._jit", "seekernel.csrc"),
    ("seekernel.ops", "seekernel.reference"),
    ("seekernel.model",),
    ("seekernel.tokenizer", "seekernel.chat_template", "seekernel.chat_worker"),
    ("seekernel.quantize",),
    ("seekernel.engine",),
    ("seekernel.cli",),
]  # fmt: skip
FOLDERS = {"seekernel": "python/seekernel", "seekernel.jit": "jit", "seekernel.model": "model"}
FORBIDDEN_MODULES = ("pickle", "marshal", "dill", "cloudpickle", "shelve")
FORBIDDEN_CALLS = ("eval", "exec")


def layer_of(module: str) -> int | None:
    found = [
        (len(prefix), level)
        for level, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    return max(found)[1] if found else None


def sources() -> Iterator[tuple[str, Path]]:
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(module: str, text: str) -> list[str]:
    """Name what a module imports from a layer above its own, and forbidden modules and calls."""
    tree, own, found = ast.parse(text), layer_of(module), []
    for name in imports(tree):
        other = layer_of(name)
        if own is not None and other is not None and other > own:
            found.append(f"{module} imports {name}, which is above it")
        if name.split(".")[0] in FORBIDDEN_MODULES:
            found.append(f"{module} imports {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"{module} calls {node.func.id}")
        loads = isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "torch.load"
        if loads and "weights_only=True" not in map(ast.unparse, node.keywords):
            found.append(f"{module} calls torch.load without weights_only=True")
    return found


def test_imports_go_one_way() -> None:
    found = [text for module, path in sources() for text in violations(module, path.read_text())]
    # Training keeps its own state in torch's format; it is no part of inference.
    assert [text for text in found if not text.startswith("seekernel.model.demo.")] == []


def test_every_module_has_a_layer() -> None:
    unknown = [module for module, _ in sources() if layer_of(module) is None]
    assert set(unknown) <= {"seekernel", "seekernel.__main__"}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("seekernel.ops.norm", "from seekernel.model import ModelConfig"),
        ("seekernel.jit.cache", "import seekernel.ops"),
        ("seekernel.model.model", "from seekernel.engine import LLM"),
        ("seekernel.engine.llm", "import pickle"),
        ("seekernel.model.weights", "import torch\ntorch.load('x')"),
        ("seekernel.tokenizer", "eval('1')"),
    ],
)
def test_the_check_sees(module: str, text: str) -> None:
    assert violations(module, text)


def test_device_headers_are_free_of_torch_and_std() -> None:
    pattern = re.compile(r"#include\s*<(?!cuda|seekernel/)|torch|std::")
    for path in (ROOT / "csrc" / "include").rglob("*.cuh"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("//")[0]
            assert not pattern.search(code), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_kernel_sources_include_no_std() -> None:
    for path in (ROOT / "csrc" / "cpu" / "kernels").glob("*.inl"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("//")[0]
            assert "std::" not in code, f"{path.name}:{number}: {line.strip()}"
            assert not re.search(r"#include\s*<", code), f"{path.name}:{number}: {line.strip()}"


def test_readme_links_exist() -> None:
    for readme in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")]:
        if ".venv" in readme.parts or "build" in readme.parts:
            continue
        for link in re.findall(r"\]\(([^)#: ]+)\)", readme.read_text(encoding="utf-8")):
            assert (readme.parent / link).exists(), f"{readme.relative_to(ROOT)} links to {link}"


def test_every_folder_says_what_it_is_for() -> None:
    for folder in ("csrc", "jit", "model", "benchmarks", "model/demo"):
        readme = ROOT / folder / "README.md"
        assert readme.exists(), f"{folder} has no README.md"
        assert len(readme.read_text(encoding="utf-8").splitlines()[0]) > 20


def test_readme_holds_the_table_of_variables() -> None:
    from seekernel.env import markdown_table

    assert markdown_table().strip() in (ROOT / "README.md").read_text(encoding="utf-8")
