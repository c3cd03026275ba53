"""Results of a submission: kept with what they depend on, used where nothing of it changed, whatever the disk does."""

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multiattn.inference.submit import results
from multiattn.inference.submit.results import ResultStore, VideoResult
from multiattn.runtime.files import content_fingerprint
from multiattn.runtime.frame_folders import clip_facts
from multiattn.runtime.layout import SUBMISSION_JOURNAL

WORK = {"crops": {"size": 64}}
PRINTS = {"m/fold0": "abc", "n/fold0": "def"}


def clip(folder: Path, name: str) -> Path:
    (folder / f"{name}.mp4").write_bytes(b"content of " + name.encode())
    return folder / f"{name}.mp4"


def result(folder: Path, name: str, logit: float = 0.5, **changes: object) -> VideoResult:
    """By the models of `PRINTS`, each of two crops."""
    file = content_fingerprint(clip(folder, name))
    made = VideoResult(
        video_id=f"folder/{name}", file=file, status="ok", frames=4, crops=[[0, 0], [7, 1]], models=list(PRINTS),
        fingerprints=list(PRINTS.values()), precisions=["fp32", "fp32"], logits=[[logit, -1e-17], [logit, 2.0]],
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def keep(folder: Path, *made: VideoResult) -> None:
    store = ResultStore(folder, WORK)
    for each in made:
        store.add(each)
    store.close()


def used(store: ResultStore, paths: dict[str, Path], *how: object) -> dict[str, VideoResult]:
    """What a store has of these videos after `use`; the facts of each are those in memory."""
    store.use(paths, *how)
    found = {video: store.read(video) for video in store.kept}
    assert {video: result.facts() for video, result in found.items()} == {it: store.kept[it][0] for it in found}
    return found


def usable(folder: Path, prints: dict[str, str] = PRINTS, precision: str = "auto") -> dict[str, dict[str, Any]]:
    paths = {f"folder/{path.stem}": path for path in folder.glob("*.mp4")}
    return plain(*used(ResultStore(folder, WORK), paths, prints, precision).values())


def plain(*results: VideoResult) -> dict[str, dict[str, Any]]:
    """video_id -> its fields, arrays as lists."""
    return {it.video_id: {name: lists(value) for name, value in vars(it).items()} for it in results}


def lists(value: Any) -> Any:
    if isinstance(value, list):
        return [lists(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_results_come_back_by_video_also_those_of_a_version_that_kept_pictures(tmp_path):
    assert usable(tmp_path) == {}
    made = [result(tmp_path, name, number / 3) for number, name in enumerate("ab")]
    keep(tmp_path, *made)
    path = tmp_path / SUBMISSION_JOURNAL
    path.write_text(path.read_text().replace('"again":', '"thumbnail":"/9j/","again":'))
    assert usable(tmp_path) == plain(*made)


def test_the_journal_is_short_and_one_that_holds_decimals_is_read_too(tmp_path):
    made = result(tmp_path, "a", 1 / 3, distances=[[0.1, 2.0], []], crops=[[0, 0], [7, 1]])
    blank = VideoResult(video_id="folder/b", file=content_fingerprint(clip(tmp_path, "b")), status="no_face", frames=4)
    keep(tmp_path, made, blank)
    path = tmp_path / SUBMISSION_JOURNAL
    assert "0.333" not in path.read_text() and usable(tmp_path) == plain(made, blank)
    header = path.read_text().splitlines()[0]
    path.write_text("\n".join([header, *map(json.dumps, plain(made, blank).values()), ""]))
    assert "0.333" in path.read_text() and usable(tmp_path) == plain(made, blank)


def test_stores_of_one_folder_read_each_file_once_and_find_their_own_results(tmp_path, monkeypatch):
    path, read = clip(tmp_path, "a"), []
    others = {"crops": {"size": 32}}
    for work, logit in ((others, 0.75), (WORK, 0.25)):
        store = ResultStore(tmp_path, work, [ResultStore(tmp_path, others)] if work is WORK else [])
        store.add(result(tmp_path, "a", logit))
    monkeypatch.setattr(results, "clip_fingerprint", lambda path: read.append(path) or content_fingerprint(path))
    first = ResultStore(tmp_path, others)
    stores = first, ResultStore(tmp_path, WORK, [first])
    found = [used(store, {"folder/a": path}, PRINTS, "auto")["folder/a"].logits[0][0] for store in stores]
    assert found == [0.75, 0.25] and read == [path]


def test_a_file_whose_facts_are_those_of_its_result_is_not_read_again(tmp_path, monkeypatch):
    made = dataclasses.replace(result(tmp_path, "a"), seen=clip_facts(tmp_path / "a.mp4"))
    keep(tmp_path, made)
    with monkeypatch.context() as patch:
        patch.setattr(results, "clip_fingerprint", lambda path: pytest.fail("read"))
        assert usable(tmp_path) == plain(made)
    os.utime(tmp_path / "a.mp4", (1, 1))
    assert usable(tmp_path) == plain(made)
    same_size(tmp_path / "a.mp4")
    assert usable(tmp_path) == {}


def test_what_is_kept_of_a_result_is_small_and_its_numbers_are_read_from_the_journal(tmp_path):
    many = {"crops": [[frame, 0] for frame in range(32)], "logits": [[frame / 3 for frame in range(32)]] * 2}
    made = [result(tmp_path, name, **many) for name in "ab"]
    keep(tmp_path, made[0])
    store = ResultStore(tmp_path, WORK)
    paths = {f"folder/{name}": tmp_path / f"{name}.mp4" for name in "ab"}
    assert plain(*used(store, paths, PRINTS, "fp32").values()) == plain(made[0])
    store.add(made[1])
    assert plain(*map(store.read, paths)) == plain(*made)
    assert all(len(pickle.dumps(kept)) < 200 for kept in store.kept.values())


def test_results_of_a_version_that_knew_a_file_by_its_size_are_set_aside(tmp_path, caplog):
    clip(tmp_path, "a")
    (tmp_path / SUBMISSION_JOURNAL).write_text(
        '{"work":{"crops":{"size":64},"models":{"m/fold0":"abc"},"precision":"fp32"}}\n'
        '{"video_id":"folder/a","file_bytes":12,"file_modified":5,"status":"no_face","frames":4}\n'
    )
    assert usable(tmp_path) == {}
    assert "results of other work" in caplog.text and (tmp_path / "kernel_results.1.jsonl").is_file()


def same_size(path: Path) -> None:
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=times)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "is_used"),
    [
        pytest.param(lambda path: os.utime(path, (1, 1)), True, id="another time"),
        pytest.param(same_size, False, id="another content of the same size and time"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes() + b"."), False, id="another size"),
        pytest.param(lambda path: path.unlink(), False, id="gone"),
        pytest.param(pipe, False, id="a pipe"),
    ],
)
def test_a_result_is_of_the_content_of_its_file(change: Callable[[Path], None], is_used, tmp_path):
    keep(tmp_path, result(tmp_path, "a"), result(tmp_path, "b"))
    change(tmp_path / "a.mp4")
    assert set(usable(tmp_path)) == ({"folder/a", "folder/b"} if is_used else {"folder/b"})


@pytest.mark.parametrize(
    ("prints", "precision", "models"),
    [
        pytest.param({"n/fold0": "def"}, "auto", ["n/fold0"], id="a model taken away"),
        pytest.param({**PRINTS, "o/fold0": "123"}, "auto", ["m/fold0", "n/fold0"], id="a model added"),
        pytest.param({**PRINTS, "m/fold0": "changed"}, "auto", ["n/fold0"], id="a model changed"),
        pytest.param({"renamed/fold0": "abc"}, "auto", ["renamed/fold0"], id="a model renamed"),
        pytest.param({"m/fold0": "x", "n/fold0": "y"}, "auto", None, id="other models"),
        pytest.param(PRINTS, "fp32", ["m/fold0", "n/fold0"], id="the same precision"),
        pytest.param(PRINTS, "bf16", None, id="another precision"),
    ],
)
def test_a_result_is_of_the_models_that_are_as_they_were(prints, precision, models, tmp_path):
    faceless = result(
        tmp_path,
        "b",
        status="no_face",
        crops=[],
        models=[],
        fingerprints=[],
        precisions=[],
        logits=[],
        distances=[],
        reasons=[],
    )
    keep(tmp_path, result(tmp_path, "a"), faceless)
    found = usable(tmp_path, prints, precision)
    assert found.pop("folder/b") == plain(faceless)["folder/b"], "no model had a part in it"
    assert [each["models"] for each in found.values()] == ([models] if models else [])


def test_results_of_other_settings_are_kept_beside_each_other(tmp_path):
    first = result(tmp_path, "a")
    one = {"models": ["m/fold0"], "fingerprints": ["abc"], "logits": [[9.0, 9.0]]}
    half, failed = (result(tmp_path, "a", **one, precisions=["bf16"], status=status) for status in ("ok", "failed"))
    few = dataclasses.replace(first, frames=2, crops=[[0, 0]], logits=[[5.0], [5.0]])
    keep(tmp_path, few, first, half, failed)
    assert usable(tmp_path, precision="bf16") == plain(half)
    assert usable(tmp_path, precision="fp32") == plain(first)
    keep(tmp_path, result(tmp_path, "a", **{**one, "models": ["o"], "fingerprints": ["ghi"]}, precisions=["fp32"]))
    joined = usable(tmp_path, {**PRINTS, "o": "ghi"})["folder/a"]
    assert joined["models"] == ["m/fold0", "n/fold0", "o"] and joined["logits"] == [*lists(first.logits), [9.0, 9.0]]


def test_a_machine_that_failed_at_everything_leaves_nothing_to_use(tmp_path):
    keep(tmp_path, *(result(tmp_path, name, status=status) for name, status in (("a", "failed"), ("b", "unreadable"))))
    assert usable(tmp_path) == {}


def test_a_damaged_line_costs_its_own_video_and_a_later_result_counts(tmp_path):
    keep(tmp_path, *(result(tmp_path, name) for name in "abc"), result(tmp_path, "a", 9.0))
    path = tmp_path / SUBMISSION_JOURNAL
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:20], *lines[3:], ""]))
    found = usable(tmp_path)
    assert set(found) == {"folder/a", "folder/c"} and found["folder/a"]["logits"][0][0] == 9.0


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"logits": [[0.5], [0.5, 2.0]]}, id="a logit is gone"),
        pytest.param({"logits": [None, [0.5, 2.0]]}, id="no numbers"),
        pytest.param({"crops": [[0, 0], [2**40, 1]]}, id="a frame that there can not be"),
        pytest.param({"crops": "AAAAAAAAAAAAAAAA"}, id="a number too many"),
        pytest.param({"distances": [[1.0], []]}, id="distances of other crops"),
        pytest.param({"reasons": [[], ["blur"] * 3]}, id="reasons of other crops"),
        pytest.param({"precisions": ["fp32"]}, id="precisions of other models"),
    ],
)
def test_a_line_whose_numbers_do_not_fit_together_costs_its_own_video(damage, tmp_path, caplog):
    keep(tmp_path, *(result(tmp_path, name) for name in "abc"))
    path = tmp_path / SUBMISSION_JOURNAL
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | damage)
    path.write_text("\n".join([*lines, ""]))
    assert set(usable(tmp_path)) == {"folder/a", "folder/c"} and "1 damaged line is left out" in caplog.text


def test_a_full_disk_costs_the_restart_and_not_the_run(tmp_path, caplog):
    store = ResultStore(tmp_path, WORK)

    class FullDisk:
        def fileno(self) -> int:
            return store_file.fileno()

        def write(self, content: bytes) -> int:
            return store_file.write(content[:30])

        def tell(self) -> int:
            return store_file.tell()

    store_file, store.journal._file = store.journal._file, FullDisk()
    store.add(result(tmp_path, "a"))
    store.add(result(tmp_path, "b"))
    assert caplog.text.count("cannot be kept") == 1
    assert plain(*(store.read(f"folder/{name}") for name in "ab")) == plain(*(result(tmp_path, name) for name in "ab"))
    store.journal._file = store_file
    store.add(result(tmp_path, "c"))
    store.close()
    assert list(usable(tmp_path)) == ["folder/c"], "what was torn is cut off again"
