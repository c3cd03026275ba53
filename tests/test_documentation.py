"""The READMEs tell the truth: their links lead somewhere, their commands parse, their table names the right files."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from multiattn.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", *sorted((ROOT / "src" / "multiattn").rglob("README.md"))]
MAX_LINES = 200
"""Of the top-level README."""
PACKAGES_WITH_A_README = {"datasets", "video", "model", "training", "scoring", "inference", "evaluation"}
ROW = re.compile(r"^\| (?P<to>[^|]+) \| \[[^\]]+\]\((?P<file>[^)]+)\) \| (?P<names>`[^|]+) \|$", re.MULTILINE)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(text: str) -> list[list[str]]:
    """Words behind `multiattn` of every command in the `sh` blocks, continued lines joined."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "multiattn" in words and (words[0] == "multiattn" or "-m" in words):
                found.append(words[words.index("multiattn") + 1 :])
    return found


COMMANDS = [
    pytest.param(words, id=f"{relative(path)}: {' '.join(words)}")
    for path in READMES
    for words in commands(path.read_text(encoding="utf-8"))
]


def test_commands_are_found_in_a_text():
    text = (
        "```sh\nmultiattn a --b 1 \\\n    --c 'd e'   # why\n\nmake demo\ntorchrun -m multiattn x\n```\n`multiattn y`\n"
    )
    assert commands(text) == [["a", "--b", "1", "--c", "d e"], ["x"]]
    assert commands("") == []


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_of_a_readme_is_one_that_the_program_takes(words, monkeypatch):
    class Parsed(Exception):
        pass

    def parse_only(*args, **kwargs):
        options(*args, **kwargs)
        raise Parsed

    options = tyro.cli
    monkeypatch.setattr(tyro, "cli", parse_only)
    with pytest.raises(Parsed):
        main(words)


@pytest.mark.parametrize("path", READMES, ids=relative)
def test_every_link_of_a_readme_leads_to_a_file(path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert [target for target in targets if "://" not in target and not (path.parent / target).exists()] == []
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_the_table_of_where_to_change_what_names_files_that_hold_what_it_says():
    rows = list(ROW.finditer((ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(rows) >= 10
    wrong = []
    for row in rows:
        source = (ROOT / row["file"]).read_text(encoding="utf-8")
        wrong += [
            f"{row['to']}: no {name} in {row['file']}"
            for name in re.findall(r"`([^`]+)`", row["names"])
            if name not in source
        ]
    assert wrong == []


def test_the_readme_is_short_and_every_package_with_more_to_say_has_its_own():
    assert len(READMES[0].read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert {path.parent.name for path in READMES[1:]} >= PACKAGES_WITH_A_README
