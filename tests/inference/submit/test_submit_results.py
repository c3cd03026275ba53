"""Results of a submission: they come back, the latest counts, and a full disk stops nothing."""

from multiattn.inference.submit.results import ResultStore, VideoResult
from multiattn.runtime.layout import SUBMISSION_JOURNAL

WORK = {"models": {"m/fold0": "abc"}, "crops": {"size": 64}, "precision": "fp32"}


def result(name: str, logit: float = 0.5) -> VideoResult:
    return VideoResult(
        video_id=f"folder/{name}", file_bytes=10, status="ok", frames=4, crops=[[0, 0], [7, 1]],
        models=["m/fold0"], logits=[[logit, -1e-17]],
    )  # fmt: skip


def filled(folder, *names: str) -> list[VideoResult]:
    store = ResultStore(folder, WORK)
    made = [result(name, number / 3) for number, name in enumerate(names)]
    for each in made:
        store.add(each)
    store.close()
    return made


def test_results_come_back_by_video(tmp_path):
    assert ResultStore(tmp_path, WORK).results == {}
    made = filled(tmp_path, "a", "b")
    assert ResultStore(tmp_path, WORK).results == {each.video_id: each for each in made}


def test_results_of_a_version_that_also_kept_pictures_are_read(tmp_path):
    made = filled(tmp_path, "a")
    path = tmp_path / SUBMISSION_JOURNAL
    path.write_text(path.read_text().replace('"again":', '"thumbnail":"/9j/","again":'))
    assert ResultStore(tmp_path, WORK).results == {"folder/a": made[0]}


def test_a_damaged_line_costs_its_own_video(tmp_path):
    filled(tmp_path, "a", "b", "c")
    path = tmp_path / SUBMISSION_JOURNAL
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:20], *lines[3:], ""]))
    assert list(ResultStore(tmp_path, WORK).results) == ["folder/a", "folder/c"]


def test_a_later_result_of_a_video_counts(tmp_path):
    filled(tmp_path, "a")
    store = ResultStore(tmp_path, WORK)
    store.add(result("a", 9.0))
    store.close()
    assert ResultStore(tmp_path, WORK).results["folder/a"].logits[0][0] == 9.0


def test_a_full_disk_costs_the_restart_and_not_the_run(tmp_path, caplog):
    store = ResultStore(tmp_path, WORK)

    class FullDisk:
        def fileno(self) -> int:
            return store_file.fileno()

        def write(self, content: bytes) -> int:
            return store_file.write(content[:30])

    store_file, store.journal._file = store.journal._file, FullDisk()
    store.add(result("a"))
    store.add(result("b"))
    assert list(store.results) == ["folder/a", "folder/b"]
    assert caplog.text.count("cannot be kept") == 1
    store.journal._file = store_file
    store.add(result("c"))
    store.close()
    assert list(ResultStore(tmp_path, WORK).results) == ["folder/c"], "what was torn is cut off again"
