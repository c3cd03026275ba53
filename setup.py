"""Dependencies and extras by the sections of requirements.txt; all else about the package stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup


def requirements(section: str) -> list[str]:
    """The requirements of a section, without comments."""
    return [word for line in section.splitlines() if (word := line.split("#")[0].strip())]


product, *extras = (Path(__file__).parent / "requirements.txt").read_text(encoding="utf-8").split("# Extra: ")
named = {name.strip(): requirements(rest) for name, _, rest in (extra.partition("\n") for extra in extras)}
setup(
    install_requires=requirements(product),
    extras_require={**named, "lab": ["jupyterlab>=4,<5"], "wandb": ["wandb>=0.31,<0.33"]},
)
