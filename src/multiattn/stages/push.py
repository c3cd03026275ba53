"""A run -> a model repository on the Hugging Face hub: weights, settings, rule, card and digests, by one commit.

    multiattn push runs/dfdc_b4 NAME/dfdc-b4 --dry-run      # what would be sent, without network
    multiattn push runs/dfdc_b4 NAME/dfdc-b4 --private

The token is the hub's own: `hf auth login`, or HF_TOKEN; HF_ENDPOINT names another hub. Absolute paths in settings
become names; saved states, logs and the latest weights stay here.
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Positional, parse, results
from multiattn.runtime.layout import named_run


@dataclass(frozen=True, kw_only=True)
class Options:
    run: Positional[Path]
    """runs/<experiment>, with its card (`multiattn card`), or a packaged run by its name."""
    repo_id: Positional[str]
    """The repository, NAME/REPOSITORY; it is made where there is none."""
    private: bool = False
    """Make it a private one; refused where it is public already."""
    revision: str | None = None
    """A branch of it (default: main)."""
    dry_run: bool = False
    """Say what would be sent, and send nothing."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="push", doc=__doc__)
    from huggingface_hub.utils import validate_repo_id

    from multiattn.inference.hub import published_files, push_files, size_of
    from multiattn.runtime.text_tables import terminal_table

    validate_repo_id(options.repo_id)
    files = published_files(named_run(options.run), options.repo_id)
    sizes = {name: size_of(content) for name, content in files.items()}
    rows = [*sizes.items(), ("together", sum(sizes.values()))]
    results(terminal_table([["file", "bytes"], *([name, f"{size:,}"] for name, size in rows)], right=(1,)))
    if options.dry_run:
        results(f"nothing was sent to {options.repo_id}")
        return
    url = push_files(files, options.repo_id, private=options.private, revision=options.revision)
    results(f"{url}", f"whoever may read it runs `multiattn pull {options.repo_id} --runs runs`")
