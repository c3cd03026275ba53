"""The health report: every leak a table can hold is found and named, and what is sound stays silent."""

import json
from pathlib import Path

import pandas as pd
import pytest
from made_trees import make_files, videos

from multiattn.datasets.dfdc import read_dfdc
from multiattn.datasets.ffpp import read_ffpp
from multiattn.datasets.folds import make_folds
from multiattn.datasets.health import check_health, count_videos
from multiattn.datasets.manifest import write_manifest
from multiattn.runtime.files import read_json
from multiattn.tables import FOLDS, VIDEOS

FF = "ffpp/original_sequences/youtube/c23/videos"


def folds_of(table: pd.DataFrame, **fold: int) -> pd.DataFrame:
    """A `folds` table of the videos whose last name is given, each its own group."""
    rows = [
        {"video_id": row.video_id, "label": row.label, "group": row.video_id, "fold": fold[row.video_id.split("/")[-1]]}
        for row in table.itertuples()
        if row.video_id.split("/")[-1] in fold
    ]
    return FOLDS.validate(pd.DataFrame(rows), "made here")


def found(table: pd.DataFrame, **options) -> list[tuple[str, str]]:
    """(severity, name) of what is found; a table without videos.json says so, which is left out here."""
    return [(item.severity, item.name) for item in check_health(table, **options) if item.name != "no videos.json"]


def only(table: pd.DataFrame, name: str, **options):
    """The one finding of a name."""
    (finding,) = [item for item in check_health(table, **options) if item.name == name]
    return finding


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([], id="no videos"),
        pytest.param([{"video_id": "d/a"}], id="one video"),
        pytest.param([{"video_id": "d/a"}, {"video_id": "d/b", "original": "d/a"}], id="a fake with its original"),
        pytest.param(
            [{"video_id": "d/a", "split": "test"}, {"video_id": "d/b", "original": "d/a", "split": "test"}],
            id="both in test",
        ),
        pytest.param(
            [{"video_id": "d/a", "target_id": "1"}, {"video_id": "e/b", "target_id": "1", "split": "test"}],
            id="one name in two data sets is two people",
        ),
        pytest.param(
            [
                {"video_id": "d/a", "target_id": "1", "label": -1},
                {"video_id": "d/b", "target_id": "1", "split": "test"},
            ],
            id="an unlabelled video is not trained on",
        ),
        pytest.param(
            [
                {"video_id": f"ffpp/{method}/{level}/000_001", "method": method, "compression": level}
                for method in ("Deepfakes", "FaceSwap")
                for level in ("c23", "c40")
            ],
            id="one file name for every method and level",
        ),
    ],
)  # fmt: skip
def test_a_sound_table_gives_no_finding(rows):
    assert found(videos(*rows)) == []
    if not rows:
        assert found(VIDEOS.empty(), folds=FOLDS.empty(), grouping="part") == []


def test_folds_just_made_give_no_finding():
    table = videos(
        *(
            row
            for n in range(12)
            for row in ({"video_id": f"d/{n}r", "part": f"p{n % 6}"}, {"video_id": f"d/{n}f", "original": f"d/{n}r"})
        )
    )
    folds = make_folds(table, num_folds=3, seed=7, grouping="part")
    assert found(table, folds=folds, grouping="part") == []


def test_counts_by_data_set_split_method_and_label():
    table = videos(
        {"video_id": "d/a"},
        {"video_id": "d/b", "original": "d/a", "method": "m"},
        {"video_id": "d/c", "original": "d/a", "method": "m"},
        {"video_id": "d/x", "label": -1, "split": "test"},
    )
    assert count_videos(table).values.tolist() == [
        ["d", "test", "", 0, 0, 1],
        ["d", "train", "", 1, 0, 0],
        ["d", "train", "m", 0, 2, 0],
    ]
    assert count_videos(table.iloc[:0]).columns.tolist() == [
        "dataset", "split", "method", "real", "fake", "unknown",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "cases"),
    [
        pytest.param(
            [{"video_id": "d/a"}, {"video_id": "d/b", "original": "d/a", "split": "test"}],
            ["d/a (train), d/b (test)"],
            id="fake tested, original trained on",
        ),
        pytest.param(
            [{"video_id": "d/a", "split": "test"}, {"video_id": "d/b", "original": "d/a", "split": "train"}],
            ["d/a (test), d/b (train)"],
            id="original tested, fake trained on",
        ),
        pytest.param(
            [{"video_id": "d/a", "split": "test"}, {"video_id": "d/b", "original": "d/a", "split": ""}],
            ["d/a (test), d/b (train)"],
            id="no split is trained on",
        ),
        pytest.param(
            [{"video_id": "d/b", "original": "d/gone"}, {"video_id": "d/c", "original": "d/gone", "split": "test"}],
            ["d/b (train), d/c (test)"],
            id="two fakes of an original that is absent",
        ),
        pytest.param(
            [{"video_id": "d/a", "split": "val"}, {"video_id": "d/b", "original": "d/a"}],
            ["d/a (val), d/b (train)"],
            id="original in val",
        ),
    ],
)
def test_a_fake_apart_from_its_original_is_a_leak(rows, cases):
    table = videos(*rows)
    assert [item for item in found(table) if item[1] != "no split"] == [("leak", "originals across splits")]
    assert only(table, "originals across splits").cases == cases


@pytest.mark.parametrize(
    ("splits", "severity"),
    [
        pytest.param(("train", "test"), "leak", id="training and test"),
        pytest.param(("", "test"), "leak", id="no split and test"),
        pytest.param(("val", "test"), "leak", id="val and test"),
        pytest.param(("train", "val"), "warning", id="training and val"),
        pytest.param(("train", ""), None, id="training and no split"),
        pytest.param(("test", "test"), None, id="both test"),
    ],
)
@pytest.mark.parametrize("column", ["target_id", "source_id"])
def test_a_person_on_both_sides_is_found_whether_target_or_source(column, splits, severity):
    table = videos(
        {"video_id": "d/a", "target_id": "id1", "split": splits[0]},
        {"video_id": "d/b", "label": 1, column: "id1", "split": splits[1]},
    )
    people = [item for item in found(table) if item[1] == "people across splits"]
    assert people == ([(severity, "people across splits")] if severity else [])


def test_with_folds_only_what_they_hold_is_trained_on():
    """Celeb-DF's own split shares people; who tests on it and trains elsewhere has no leak."""
    table = videos(
        {"video_id": "c/a", "target_id": "id1"},
        {"video_id": "c/b", "target_id": "id1", "split": "test"},
        {"video_id": "f/r"},
        {"video_id": "f/f", "label": 1},
        {"video_id": "f/s"},
        {"video_id": "f/g", "label": 1},
    )
    assert found(table)[0] == ("leak", "people across splits")
    folds = folds_of(table, r=0, f=0, s=1, g=1)
    assert found(table, folds=folds) == [("note", "videos in no fold")]


@pytest.mark.parametrize(
    ("link", "name"),
    [
        pytest.param({"original": "d/r"}, "originals across folds", id="original"),
        pytest.param({"label": 1, "source_id": "1"}, "people across folds", id="person"),
        pytest.param({"label": 1, "part": "p"}, "parts across folds", id="part"),
    ],
)
@pytest.mark.parametrize("other", [1, -1], ids=["another fold", "always trained on"])
def test_what_belongs_together_in_two_folds_is_a_leak(link, name, other):
    table = videos(
        {"video_id": "d/r", "target_id": "1", "part": "p"},
        {"video_id": "d/f", **link},
        *({"video_id": f"d/{x}", "label": label} for x, label in (("s", 0), ("g", 1), ("t", 0), ("h", 1))),
    )
    folds = folds_of(table, r=0, f=other, g=0, s=1, h=1, t=1)
    assert found(table, folds=folds, grouping="part") == [("leak", name)]
    case = only(table, name, folds=folds, grouping="part").cases[0]
    assert "d/r (fold 0)" in case and f"d/f ({'fold 1' if other == 1 else 'no fold'})" in case


def test_parts_may_span_folds_that_were_not_grouped_by_part():
    table = videos(*({"video_id": f"d/{name}", "label": name in "bd", "part": "p"} for name in "abcd"))
    folds = folds_of(table, a=0, b=0, c=1, d=1)
    assert found(table, folds=folds, grouping="original") == []
    assert found(table, folds=folds, grouping="part") == [("leak", "parts across folds")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"group": "g"}, ("leak", "groups across folds"), id="one group"),
        pytest.param({"label": [0, 1, 0, 1, 0, 0]}, ("warning", "labels"), id="another label"),
        pytest.param({"fold": [0, 0, 1, 0, 1, 0]}, ("warning", "one class"), id="a fold of one class"),
    ],
)
def test_folds_that_do_not_fit_the_table_are_found(change, expected, alternating):
    table, folds = alternating
    assert found(table, folds=folds) == []
    assert found(table, folds=folds.assign(**change)) == [expected]


def test_rows_that_only_one_of_the_two_tables_holds_or_that_are_test_videos_are_found(alternating):
    table, folds = alternating
    assert found(table.iloc[:5], folds=folds) == [("warning", "unknown videos in folds")]
    assert found(table, folds=folds.iloc[:5]) == [("note", "videos in no fold")]
    table.loc[5, "split"] = "test"
    assert found(table, folds=folds) == [("leak", "test videos in folds")]


@pytest.fixture
def alternating() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Six videos, real and fake in turn, and their two folds."""
    table = videos(*({"video_id": f"d/{x}", "label": label} for x, label in zip("abcdef", (0, 1) * 3, strict=True)))
    return table, folds_of(table, a=0, b=0, c=1, d=1, e=1, f=1)


@pytest.mark.parametrize(
    ("ff_split", "df_split", "expected"),
    [
        pytest.param("test", "train", 1, id="trained on a test id"),
        pytest.param("test", "", 1, id="without a split on a test id"),
        pytest.param("train", "test", 1, id="tested on an id trained on"),
        pytest.param("test", "test", 0, id="both test"),
        pytest.param("train", "train", 0, id="both train"),
    ],
)
@pytest.mark.parametrize("label", [0, 1], ids=["real", "fake"])
def test_deeperforensics_against_the_splits_of_faceforensics(label, ff_split, df_split, expected):
    clip = "deeperforensics/manipulated_videos/end_to_end/480_W133"
    table = videos(
        {"video_id": f"{FF}/480", "target_id": "480", "split": ff_split},
        {"video_id": f"{FF}/000", "target_id": "000", "split": "train"},
        {"video_id": clip, "label": label, "original": f"{FF}/480", "target_id": "480", "split": df_split},
    )
    findings = [item for item in found(table) if item[1] != "no split"]
    assert findings == [("leak", "DeeperForensics and FaceForensics++")] * expected
    if expected:
        assert only(table, "DeeperForensics and FaceForensics++").cases == [clip]


@pytest.mark.parametrize("with_ffpp", [False, True], ids=["alone", "with FF++ without splits"])
def test_deeperforensics_without_the_splits_of_faceforensics_cannot_be_checked(with_ffpp):
    rows = [{"video_id": f"{FF}/480", "target_id": "480", "split": ""}] if with_ffpp else []
    table = videos(*rows, {"video_id": "deeperforensics/480_W133", "label": 1, "target_id": "480"})
    assert ("note", "DeeperForensics without FaceForensics++") in found(table)


def test_the_same_clips_across_ffpp_and_deeperforensics_are_a_leak_across_folds():
    table = videos(
        {"video_id": f"{FF}/480", "target_id": "480"},
        {"video_id": "deeperforensics/480_W133", "original": f"{FF}/480"},
        *({"video_id": f"d/{x}", "label": label} for x, label in (("s", 0), ("g", 1))),
    )
    folds = folds_of(table, **{"480": 0, "g": 0, "480_W133": 1, "s": 1})
    assert ("leak", "originals across folds") in found(table, folds=folds)


def kaggle(*, label: int = -1) -> pd.DataFrame:
    """Two public test clips, of which part 1 holds one."""
    return videos(
        {"video_id": "dfdc/dfdc_train_part_1/a", "part": "dfdc_train_part_1"},
        {"video_id": "dfdc/dfdc_train_part_9/z", "part": "dfdc_train_part_9"},
        {"video_id": "dfdc/test_videos/a", "part": "test_videos", "split": "test", "label": label},
        {"video_id": "dfdc/test_videos/b", "part": "test_videos", "split": "test", "label": label},
    )


@pytest.mark.parametrize("label", [-1, 0], ids=["unlabelled", "labelled"])
def test_kaggles_public_test_videos_inside_a_training_part_are_a_leak(label):
    table = kaggle(label=label)
    assert found(table) == [("leak", "Kaggle's public test videos")]
    finding = only(table, "Kaggle's public test videos")
    assert finding.text.startswith("1 of 2 clips of test_videos are also in dfdc_train_part_1")
    assert finding.cases == ["dfdc/dfdc_train_part_1/a"]


def test_kaggles_public_test_videos_do_no_harm_when_their_part_is_in_no_fold():
    table = kaggle()
    assert ("leak", "Kaggle's public test videos") not in found(table, folds=folds_of(table, z=0))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("dfdc_train_part_0", 1),
        ("dfdc_train_part_2", 1),
        ("dfdc_train_part_02", 1),
        ("dfdc_train_part_3", 0),
        ("dfdc_train_part_10", 0),
        ("dfdc_train_part_20", 0),
    ],
)
def test_parts_that_hold_the_public_test_videos_are_noted(part, expected):
    table = videos({"video_id": f"dfdc/{part}/a", "part": part})
    assert found(table) == [("note", "Kaggle's public test videos")] * expected


def test_two_rows_of_one_path_are_a_warning():
    table = videos({"video_id": "d/a", "path": "x.mp4"}, {"video_id": "d/b", "path": "x.mp4"}, {"video_id": "d/c"})
    assert found(table) == [("warning", "paths listed twice")]
    assert only(table, "paths listed twice").cases == ["d/a", "d/b"]


@pytest.mark.parametrize(
    ("dataset", "splits", "severity"),
    [
        pytest.param("dfdc", ("train", "test"), "leak", id="DFDC's names are unique"),
        pytest.param("dfdc", ("train", "train"), "warning", id="in training twice"),
        pytest.param("own", ("train", "test"), "warning", id="other names may repeat"),
    ],
)
def test_a_file_name_used_twice(dataset, splits, severity):
    first, second = ({"video_id": f"{dataset}/{x}/a", "split": split} for x, split in zip("pq", splits, strict=True))
    assert found(videos(first, second, {"video_id": f"{dataset}/p/b"})) == [(severity, "file names used twice")]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"video_id": "own/real/1"}, {"video_id": "own/fake/1", "label": 1}, id="a real and a fake"),
        pytest.param({"video_id": "o/a/1", "target_id": "a"}, {"video_id": "o/b/1", "target_id": "b"}, id="two people"),
        pytest.param(
            {"video_id": "o/a/1", "path": "a/1"}, {"video_id": "o/b/1", "path": "b/1"}, id="folders of frames"
        ),
    ],
)
def test_names_that_are_no_copies(first, second):
    assert found(videos(first, second)) == []


@pytest.fixture
def tree(tmp_path) -> Path:
    """A part of DFDC: one clip there, one listed but absent, one present but unlisted; and its table."""
    part = make_files(tmp_path / "dfdc" / "dfdc_train_part_7", "here.mp4", "stray.mp4")
    entries = {name: {"label": "REAL", "split": "train"} for name in ("here.mp4", "gone.mp4")}
    (part / "metadata.json").write_text(json.dumps(entries))
    write_manifest(read_dfdc(tmp_path / "dfdc"), tmp_path / "videos.csv", append=False)
    return tmp_path


def of_tree(tree: Path, **options):
    table, manifest = VIDEOS.read(tree / "videos.csv"), read_json(tree / "videos.json")
    findings = check_health(table, manifest=manifest, roots={"dfdc": tree / "dfdc"}, **options)
    return {(item.severity, item.name): item.cases for item in findings}


def test_absent_and_unlisted_files_come_from_videos_json(tree):
    assert of_tree(tree) == {
        ("warning", "absent"): ["dfdc_train_part_7/gone.mp4"],
        ("warning", "unlisted"): ["dfdc_train_part_7/stray.mp4"],
    }


def test_files_that_came_and_went_since_are_found_on_disk(tree):
    part = tree / "dfdc" / "dfdc_train_part_7"
    (part / "here.mp4").unlink()
    (part / "new.mp4").touch()
    (part / "notes.txt").touch()
    found = of_tree(tree)
    assert found["warning", "vanished"] == ["dfdc_train_part_7/here.mp4"]
    assert found["warning", "appeared"] == ["dfdc_train_part_7/new.mp4"]
    part.rename(tree / "elsewhere")
    assert of_tree(tree)["warning", "vanished"] == ["dfdc_train_part_7/here.mp4"]


def test_a_table_that_was_changed_since_is_noted(tree):
    table = VIDEOS.read(tree / "videos.csv")
    VIDEOS.write(pd.concat([table, table.assign(video_id="dfdc/x", path="x.mp4")]), tree / "videos.csv")
    assert ("note", "table changed") in of_tree(tree)


def test_a_root_that_is_not_there_is_refused(tree):
    with pytest.raises(FileNotFoundError, match="--root dfdc=DIR"):
        check_health(VIDEOS.read(tree / "videos.csv"), roots={"dfdc": tree / "nothing"})


def test_findings_come_worst_first_and_a_table_without_videos_json_says_so():
    table = videos({"video_id": "d/a", "split": ""}, {"video_id": "d/b", "original": "d/a", "split": "test"})
    findings = [(item.severity, item.name) for item in check_health(table)]
    assert findings == [("leak", "originals across splits"), ("note", "no split"), ("note", "no videos.json")]


@pytest.mark.shared
def test_the_real_excerpt_with_the_official_splits_has_no_leak(shared, tmp_path):
    splits = shared / "lists" / "ffpp_splits"
    table = write_manifest(read_dfdc(shared / "videos/dfdc"), tmp_path / "videos.csv", append=False)
    table = write_manifest(read_ffpp(shared / "videos/ffpp", splits=splits), tmp_path / "videos.csv", append=True)
    findings = check_health(
        VIDEOS.validate(table, "table"),
        manifest=read_json(tmp_path / "videos.json"),
        roots={"dfdc": shared / "videos/dfdc", "ffpp": shared / "videos/ffpp"},
    )
    assert len(table) == 7
    assert not [item for item in findings if item.severity == "leak"]
    assert {item.name for item in findings} <= {"Kaggle's public test videos", "absent", "unlisted"}
