"""Runs on the Hugging Face hub: a run folder -> a model repository, and back, every file compared with its digest."""

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, hf_hub_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from multiattn.config.choices import Tta
from multiattn.inference.runs import find_models
from multiattn.runtime import layout
from multiattn.runtime.files import changed_files, digest_list, exclusive_folder, file_digest, read_digests, read_json
from multiattn.runtime.layout import DIGESTS_FILE
from multiattn.runtime.paths import names_only, path_fault
from multiattn.runtime.tensor_files import first_line, read_metadata
from multiattn.runtime.text_tables import counted, printable

logger = logging.getLogger(__name__)

README = "README.md"
HUBS_OWN = {".gitattributes"}
"""Files that the hub puts into a repository by itself."""
OF_EXPERIMENT = (
    *(layout.MODEL_CARD_FILE, layout.LICENCE_FILE, layout.SCORING_FILE, layout.VIDEO_HELD_OUT_FILE, layout.FOLDS_FILE),
    layout.tuned_held_out_file(Path(layout.SCORING_FILE)).name,
)
OF_FOLD = (
    *(layout.EXPERIMENT_FILE, layout.RECIPE_FILE, layout.FOLDS_FILE, layout.INPUTS_FILE, layout.CHANGES_FILE),
    *(layout.ENVIRONMENT_FILE, layout.IMPORT_FILE, layout.EPOCHS_FILE, layout.BEST_WEIGHTS, layout.DISTANCE_FILE),
    *(layout.held_out_file(tta) for tta in get_args(Tta)),
    layout.LAST_HELD_OUT_FILE,
)
"""Files of a fold that are published. Its states (pickles), latest weights, logs and TensorBoard's events stay here."""
LARGE, TEXTS = (".safetensors", ".parquet"), (".json", ".csv", ".md", ".sha256")
"""Endings of the files that a pulled run may have; no format among them can hold code."""
LARGEST_TEXT = 100_000_000
"""Bytes of a text file: the folds table of all of DFDC has 5 million."""
_NAME = re.compile(r"\w[\w.+-]*")
"""Name of a run, a folder or a file of it."""
_PATH = re.compile(r"(?<![\w./:~-])(?:/[^\s/'\",;]+){2,}")
"""An absolute path inside other words."""
HEAD = """\
---
license: other
license_name: {licence}
license_link: {link}
library_name: multiattn
pipeline_tag: video-classification
model_name: {name}
tags:
- deepfake-detection
- multi-attention
- arxiv:2103.02406
---

Score a clip with this run: `multiattn pull {repo_id} --runs runs`, then `multiattn score clip.mp4 --runs runs/{name}`.

"""


def published_files(run: Path, repo_id: str) -> dict[str, bytes | Path]:
    """Files of a run's repository, by path: content, or the file that has it; `files.sha256` lists all others.

    All folds with their best weights, tables and settings, in which absolute paths have become names; the rule, the
    licence, and the card, as `README.md` too.

    Raises:
        FileNotFoundError: no run, a fold without weights, or no card.
        ValueError: a file of a packaged run was changed, a name that no repository takes, or a text tells of a folder
            of this machine.
    """
    experiment = layout.experiment_folder(run)
    name = layout.experiment_name(run)
    models = find_models(experiment)
    card = experiment / layout.MODEL_CARD_FILE
    if not card.is_file():
        raise FileNotFoundError(f"{card}: expected the run's card, found none. `multiattn card --runs {run}` makes it.")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{run}: expected a name of letters, digits, `.`, `_`, `+` and `-`, found {name!r}. Rename it."
        )
    files: dict[str, bytes | Path] = {}
    for folder, names in ((experiment, OF_EXPERIMENT), *((model.path, OF_FOLD) for model in models)):
        for path in (folder / one for one in names if (folder / one).is_file()):
            files[path.relative_to(experiment).as_posix()] = path if path.suffix in LARGE else _without_paths(path)
    has_licence = layout.LICENCE_FILE in files
    terms = {"licence": "terms-of-the-weights", "link": layout.LICENCE_FILE}
    head = HEAD.format(
        name=name, repo_id=repo_id, **(terms if has_licence else {"licence": "see-the-card", "link": README})
    )
    files[README] = head.encode() + files[layout.MODEL_CARD_FILE]
    private = {str(path).encode() + b"/" for path in (Path.home(), Path.cwd(), experiment.resolve().parent)} - {b"//"}
    for place, content in files.items():
        if isinstance(content, bytes) and (found := [one for one in private if one in content]):
            raise ValueError(
                f"{experiment / place}: expected no folder of this machine in what is published, found "
                f"{found[0].decode()}. Take it out of that file."
            )
    listed = {place: _digest(content) for place, content in files.items()}
    return {DIGESTS_FILE: digest_list(listed).encode(), **dict(sorted(files.items()))}


def _without_paths(path: Path) -> bytes:
    """The content of a text file; in JSON, absolute paths have become names, inside other words too."""
    if path.suffix != ".json":
        return path.read_bytes()
    text = json.dumps(_masked(names_only(read_json(path))), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _masked(values: object) -> object:
    if isinstance(values, dict):
        return {name: _masked(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_masked(value) for value in values]
    return _PATH.sub(lambda found: found[0].rpartition("/")[2], values) if isinstance(values, str) else values


def _digest(content: bytes | Path) -> str:
    return file_digest(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def size_of(content: bytes | Path) -> int:
    """Bytes of one of the `published_files`."""
    return content.stat().st_size if isinstance(content, Path) else len(content)


def push_files(
    files: Mapping[str, bytes | Path], repo_id: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Make these the files of a model repository, by one commit; the commit's address.

    The repository and the branch are made where they are not there; what else a run left there is removed.

    Raises:
        ValueError: the hub refuses it or is not reached; it is to be private and is not; or the repository holds
            something other than a run.
    """
    api = HfApi()
    with _hub_errors(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        there = api.model_info(repo_id)
        names = _require_ours(repo_id, there, private)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
            there = api.model_info(repo_id, revision=revision)
            names = _require_ours(repo_id, there, private)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in sorted(names - files.keys())]
        return api.create_commit(
            repo_id, operations, commit_message="Upload a run of multiattn", revision=revision, parent_commit=there.sha
        ).commit_url


def _require_ours(repo_id: str, there: ModelInfo, private: bool) -> set[str]:
    """The files of a repository that a run may be sent to; raises `ValueError` for others."""
    if private and not there.private:
        raise ValueError(f"{repo_id}: expected a private repository, found a public one. Nothing was sent.")
    names = {one.rfilename for one in there.siblings or ()} - HUBS_OWN
    if names - {README} and DIGESTS_FILE not in names:
        held = ", ".join(sorted(names)[:3])
        raise ValueError(
            f"{repo_id}: expected an empty repository or one that `multiattn push` made, found {printable(held)}. "
            "Name another one. Nothing was sent."
        )
    return names


def pull_run(repo_id: str, runs: Path, *, revision: str | None = None, max_gb: float) -> tuple[Path, bool]:
    """Fetch a run that `push_files` published to `<runs>/<its name>`; the folder, and False where it was there already.

    It is fetched into a hidden folder beside it, compared with its list of digests, read as a run, and then renamed.
    A call that was killed is continued by the next one.

    Raises:
        ValueError: the hub refuses it or is not reached; no run, or one with a file that is not listed, has another
            digest, is of a kind that could hold code, or is no plain file below the folder; more than `max_gb`; or
            another run has its place. Nothing of it stays.
    """
    validate_repo_id(repo_id)
    building = Path(runs) / f".{repo_id.replace('/', '--')}.pulling"
    if building.is_symlink():
        raise ValueError(f"{building}: expected a folder to fetch into, found a link. Remove it.")
    with exclusive_folder(building), _hub_errors(repo_id):
        try:
            return _pull(repo_id, building, revision, max_gb)
        except _RefusedError as error:
            shutil.rmtree(building)
            raise ValueError(f"{repo_id}: refused: {printable(str(error))}. Nothing of it was kept.") from error


class _RefusedError(Exception):
    """A fault of a repository, in words."""


def _pull(repo_id: str, building: Path, revision: str | None, max_gb: float) -> tuple[Path, bool]:
    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or () if one.rfilename not in HUBS_OWN}
    _require_run(sizes, max_gb)

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(repo_id, name, revision=info.sha, local_dir=building))

    listed = set(read_digests(fetch(DIGESTS_FILE)))
    if different := sorted(listed ^ (sizes.keys() - {DIGESTS_FILE})):
        raise _RefusedError(f"{DIGESTS_FILE} and the repository differ in {', '.join(different[:3])}")
    readme = fetch(README).read_text(encoding="utf-8", errors="replace") if README in sizes else ""
    named = re.search(r"^model_name: ([\w.+-]+)$", readme, re.MULTILINE)
    if named is None or not _NAME.fullmatch(named[1]):
        raise _RefusedError(f"expected the run's name as model_name in {README}, found none")
    target = building.with_name(named[1])
    if target.exists() or target.is_symlink():
        own_list = (building / DIGESTS_FILE).read_bytes()
        shutil.rmtree(building)
        _require_same(target, own_list)
        return target, False
    _remove_others(building, sizes)
    for one, size in sizes.items():
        if size > 1e6:
            logger.info("%s (%.0f MB)", one, size / 1e6)
        fetch(one)
    shutil.rmtree(building / ".cache")  # the hub's notes on what was fetched
    _require_sound(building, [*listed, DIGESTS_FILE])
    (building / ".lock").unlink()
    building.rename(target)
    return target, True


def _remove_others(building: Path, names: Iterable[str]) -> None:
    """Remove what a call that was killed fetched of an earlier commit, and this one does not have."""
    kept = {place for name in names for place in (Path(name), *Path(name).parents)}
    for path in sorted(building.rglob("*"), reverse=True):
        place = path.relative_to(building)
        if place not in kept and not place.parts[0].startswith("."):
            path.rmdir() if path.is_dir() else path.unlink()


def _require_run(sizes: Mapping[str, int], max_gb: float) -> None:
    """Refuse a repository by the names and sizes it says it has, before anything of it is fetched."""
    for name in sizes:
        if path_fault(name) or not all(map(_NAME.fullmatch, name.split("/"))):
            raise _RefusedError(f"expected paths of plain names below the folder, found {name!r}")
        if not name.endswith((*LARGE, *TEXTS)):
            raise _RefusedError(
                f"expected {', '.join((*LARGE, *TEXTS))} files alone, which hold no code, found {name!r}"
            )
        if name.endswith(TEXTS) and sizes[name] > LARGEST_TEXT:
            raise _RefusedError(f"{name}: expected a text of at most {LARGEST_TEXT / 1e6:.0f} MB")
    if DIGESTS_FILE not in sizes:
        raise _RefusedError(f"expected a run that `multiattn push` published, found no {DIGESTS_FILE}")
    if (total := sum(sizes.values()) / 1e9) > max_gb:
        raise _RefusedError(
            f"expected at most --max-gb {max_gb:g}, found {counted(len(sizes), 'file')} of {total:.3g} GB"
        )


def _require_same(target: Path, listed: bytes) -> None:
    """Raise `ValueError` where the run in a pulled one's place is not that of this list, byte for byte."""
    digests = target / DIGESTS_FILE
    if not digests.is_file() or digests.read_bytes() != listed or changed_files(digests):
        raise ValueError(
            f"{target}: expected no run of that name, or the same one, found another. Move it away, or take another "
            "--runs. It is as it was."
        )


def _require_sound(building: Path, names: list[str]) -> None:
    """Refuse files that were fetched, unless they are plain, as listed, and a run together."""
    for name in names:
        if (building / name).is_symlink() or not (building / name).is_file():
            raise _RefusedError(f"{name}: expected a plain file, found none")
    if changed := changed_files(building / DIGESTS_FILE):
        raise _RefusedError(f"expected the files whose SHA-256 {DIGESTS_FILE} lists, found {', '.join(changed[:3])}")
    try:
        for name in names:
            if name.endswith(".safetensors"):
                read_metadata(building / name)
        find_models(building)
    except (ValueError, OSError) as error:
        raise _RefusedError(str(error).replace(f"{building}/", "").rstrip(".")) from error


@contextlib.contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Raise what the hub says as one `ValueError`."""
    try:
        yield
    except (HTTPError, LocalEntryNotFoundError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        advice = {
            401: " Log in with `hf auth login`, or give a token as HF_TOKEN.",
            403: " The token has no right to do that: make one that may write.",
            404: " Is the name right, and, of a private repository, HF_TOKEN given?",
            412: " Somebody else changed it meanwhile: run the same command again.",
        }.get(status, " Run the same command again: it goes on.")
        raise ValueError(f"{repo_id}: the hub answers: {printable(first_line(cause))}.{advice}") from error
