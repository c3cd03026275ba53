"""A run on the Hugging Face hub -> runs/<its name>, each file compared with its digest; no pickle is taken.

    multiattn pull NAME/dfdc-b4 --runs runs
    multiattn pull NAME/dfdc-b4 --revision 3f2a1c9          # a branch, a tag or a commit

The token of a private repository is the hub's own: `hf auth login`, or HF_TOKEN; HF_ENDPOINT names another hub.
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Positional, parse, results
from multiattn.config.settings import require


@dataclass(frozen=True, kw_only=True)
class Options:
    repo_id: Positional[str]
    """The repository, NAME/REPOSITORY, as `multiattn push` made it."""
    runs: Path = Path("runs")
    """The folder of runs; a run of the same name that is there stays as it is."""
    revision: str | None = None
    """A branch, a tag or a commit of it (default: main)."""
    max_gb: float = 20.0
    """Refuse a larger one (10^9 bytes)."""

    def __post_init__(self) -> None:
        require(self.max_gb > 0, self, "max_gb", "a number above 0")


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="pull", doc=__doc__)
    from multiattn.inference.hub import pull_run

    run, is_new = pull_run(options.repo_id, options.runs, revision=options.revision, max_gb=options.max_gb)
    results(f"{run} {'is there: every file as its digest says' if is_new else 'was there already, byte for byte'}")
