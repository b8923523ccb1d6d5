"""What the documents say: every link leads somewhere, every command works."""

import re
import shlex
import subprocess
import sys

import pytest
import warm
from project import ROOT, SNAKEMAKE, Project

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
CODE = re.compile(r"`[^`\n]*`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file(document):
    for target, _ in LINK.findall(CODE.sub("", document.read_text())):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def commands() -> list[str]:
    """Lines of fenced blocks in the README that begin with one of our commands, comments cut off."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith(("snakemake ", "python -m ", "make "))})


def test_the_readme_shows_commands():
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("snakemake ")])
def test_every_snakemake_command_of_the_readme_plans(tmp_path, command):
    project = Project(tmp_path / "project")
    words = shlex.split(command)[1:]
    if "--report" in words:  # needs a finished run: tests/test_dag.py makes one
        words = words[: words.index("--report")]
    done = warm.snakemake([SNAKEMAKE, *words, *([] if "--list-rules" in words else ["-n"])], project.folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python -m ")])
def test_every_module_of_the_readme_has_help(command):
    module = shlex.split(command)[2]
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_every_make_target_of_the_readme_exists(command):
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
