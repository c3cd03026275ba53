"""The Dockerfile, read: it copies what is there and no more, and runs commands that exist, as a user without rights."""

import json
import re
import tomllib
from pathlib import Path

from multiattn.__main__ import STAGES

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    if line
]


def values(name: str) -> list[str]:
    return [value for instruction, value in INSTRUCTIONS if instruction == name]


def test_it_copies_what_is_there_and_the_context_holds_nothing_else():
    stages = re.findall(r"^FROM \S+ AS (\w+)$", TEXT, re.MULTILINE)
    of_context, of_stages = [], []
    for words in map(str.split, values("COPY")):
        source = re.fullmatch(r"--from=(\w+)", words[0])
        (of_stages.append(source[1]) if source else of_context.extend(words[:-1]))
    assert of_stages and set(of_stages) <= set(stages)
    assert all((ROOT / name).exists() for name in of_context)
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*" and sorted(line[1:] for line in ignored if line.startswith("!")) == sorted(of_context)


def test_it_runs_the_command_as_a_user_without_rights_and_keeps_no_cache():
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in INSTRUCTIONS} <= known
    assert json.loads(values("ENTRYPOINT")[-1]) == list(PROJECT["scripts"]) and int(values("USER")[-1]) > 0
    installs = re.findall(r"pip \w+ .*?(?=&&|$)", "\n".join(values("RUN")), re.MULTILINE)
    assert len(installs) == 2 and all("--no-cache-dir" in words for words in installs)
    examples = re.findall(r"^#.* multiattn(?::\w+)? (?!--|\.)(\w+)", TEXT, re.MULTILINE)
    assert {"score", "train"} <= set(examples) <= set(STAGES)
    (python,) = re.findall(r"^ARG PYTHON=3\.(\d+)$", TEXT, re.MULTILINE)
    assert PROJECT["requires-python"] == ">=3.11" and int(python) >= 11
    assert f"Programming Language :: Python :: 3.{python}" in PROJECT["classifiers"]
