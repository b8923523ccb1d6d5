"""Who may import whom: the table in docs/design.md, read from the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A package stands for all its modules, but for those that are listed by themselves.
PLAIN = {
    "errors", "messages", "presets", "strict_yaml", "sections", "specifications", "runs", "config", "config_checks",
    "config_docs", "catalogue", "schedule", "manifest", "stage", "survey", "verify", "accuracy", "progress", "partial",
    "downloads", "jobs", "planning", "watch", "watching", "pages", "text", "storage", "jsonl", "identities",
    "dial",
}  # fmt: skip
LAYERS = [
    PLAIN,
    {"distributed", "determinism", "agreement", "jobs.torchrun"},
    {"gpt", "muon", "adamw", "optimizer", "cuts", "tokenizer", "tokenizer_eval", "dataset", "packing", "tokens", "calculator",
     "sandbox", "confined", "checkpoint", "tensor_file", "tiny_world", "core_bundle", "core_tokens", "batching", "inference",
     "kv_cache", "jobs.machine_check", "concepts", "gpt2", "gpt2_tokenizer", "attention", "casts",
     "compiling", "loss", "recompute", "flash"},
    {"dataloader", "engine", "tasks", "conversations", "dialogue"},
    {"train", "loss_eval", "core_eval", "chat_eval", "planning.speed", "planning.preflight", "classroom"},
    {"reports", "component_map", "tracing"},
    {"chat", "terminal", "serve", "serving", "trace", "compare", "yardstick"},
]  # fmt: skip
RANK = {module: number for number, layer in enumerate(LAYERS) for module in layer}
LIBRARY = sorted((ROOT / "nanochat").rglob("*.py"))
PROGRAMS = sorted((ROOT / "workflow" / "scripts").glob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "nanochat").with_suffix("").parts).removesuffix(".__init__")


def listed(name: str) -> str | None:
    """The name by which LAYERS has a module, or whatever is imported from it: its own, or that of the package it is in."""
    parts = name.split(".")
    return next((found for n in range(len(parts), 0, -1) if (found := ".".join(parts[:n])) in RANK), None)


def library_modules(path: Path) -> set[str]:
    names = {name.removeprefix("nanochat.") for name in imported(path) if name.startswith("nanochat.")}
    return {found for name in names if (found := listed(name))}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_its_own_layer_and_those_below(path):
    module = module_of(path)
    if module == "__init__":
        return
    own = listed(module)
    assert own, f"give nanochat.{module} a layer in this test and in docs/design.md"
    above = {other for other in library_modules(path) if RANK[other] > RANK[own]}
    assert not above, f"nanochat.{module} imports {above} from a layer above"
    assert not any(name.split(".")[0] == "snakemake" for name in imported(path))


@pytest.mark.parametrize("path", [p for p in LIBRARY if listed(module_of(p)) in PLAIN], ids=lambda path: path.name)
def test_plain_modules_never_import_pytorch(path):
    assert "torch" not in {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_import_the_library_and_never_one_another(path):
    others = {p.stem for p in PROGRAMS}
    assert not {name.split(".")[0] for name in imported(path)} & (
        others - {"tokenizer", "train", "report", "download"} | {"snakemake"}
    )


def test_only_download_reaches_for_the_network():
    reaching = {"requests", "urllib", "urllib3", "http", "socket"}
    found = {module_of(path) for path in LIBRARY if reaching & {name.split(".")[0] for name in imported(path)}}
    # the catalogue parses addresses, offline refuses them; the chat server listens
    assert found <= {"downloads.fetch", "downloads.ask", "downloads.http", "catalogue", "jobs.offline", "serving.server"}


def test_no_pickle_and_no_torch_load():
    for path in LIBRARY + PROGRAMS:
        text = path.read_text()
        assert "pickle" not in {name.split(".")[0] for name in imported(path)}, path
        assert "torch.load(" not in text and "allow_pickle=True" not in text and "shell=True" not in text, path
