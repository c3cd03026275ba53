"""The registry of data sets: `multiattn index` and the README follow from it, also for one registered from outside."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_trees import make_files

from multiattn.datasets import readers
from multiattn.datasets.celebdf import TEST_LIST
from multiattn.datasets.deeperforensics import read_splits
from multiattn.datasets.ffpp import read_pairs
from multiattn.datasets.manifest import IndexOptions, Listing, require_root, video_files
from multiattn.datasets.readers import READERS
from multiattn.tables import FAKE, REAL, SPLITS, VIDEOS
from pipeline import run

README = (Path(readers.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_a_command_and_a_tree_of_every_reader():
    trees = re.findall(r"^### ([\w-]+)\n\n```text\n", README, flags=re.MULTILINE)
    assert trees == list(READERS)
    assert re.findall(r"^multiattn index ([\w-]+)", README.partition("## Layouts")[0], flags=re.MULTILINE) == trees


def test_the_reader_of_the_readme_appears_in_the_help_in_the_error_and_in_a_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(READERS, "mine", None)  # taken out after the test
    example = README.partition("## Another data set")[2].partition("```python\n")[2].partition("```")[0]
    names = (IndexOptions, Listing, require_root, video_files, dataclass, Path)
    exec(example, {of.__name__: of for of in names} | {"READERS": READERS, "FAKE": FAKE, "REAL": REAL})
    for arguments, shown in ((["--help"], "mine"), (["none-such"], "mine"), (["mine", "--help"], "--level")):
        with pytest.raises(SystemExit):
            run("index", *arguments)
        printed = capsys.readouterr()
        assert shown in printed.out + printed.err
    (tmp_path / "low").mkdir()
    for name in ("fake1.mp4", "real1.mp4"):
        (tmp_path / "low" / name).touch()
    run("index", "mine", "--root", tmp_path, "--level", "low", "--out", tmp_path / "videos.csv")
    assert VIDEOS.read(tmp_path / "videos.csv")["video_id"].tolist() == ["mine/low/fake1", "mine/low/real1"]


@pytest.mark.parametrize("name", sorted(set(READERS) - {"crops", "deepfakebench", "df40", "wilddeepfake"}))
@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_a_root_that_is_no_folder_is_refused_with_the_way_out(kind, name, tmp_path):
    if kind == "file":
        (tmp_path / "root").touch()
    with pytest.raises(FileNotFoundError, match="--root"):
        READERS[name](root=tmp_path / "root", out=tmp_path / "videos.csv").read()


@pytest.mark.parametrize("name", ["dfdc", "ffpp", "ffpp-kaggle", "dfd", "deeperforensics"])
def test_an_empty_root_gives_no_rows(name, tmp_path):
    listing = READERS[name](root=tmp_path, out=tmp_path / "videos.csv").read()
    assert (listing.rows, listing.absent, listing.unlisted) == ([], [], [])


@pytest.mark.parametrize("name", ["ffpp", "dfd"])
@pytest.mark.parametrize("compression", ["C23", "", "c41"])
def test_an_unknown_compression_is_refused(compression, name, tmp_path):
    with pytest.raises(ValueError, match="--compression: expected one of raw, c0, c23, c40"):
        READERS[name](root=tmp_path, out=tmp_path / "videos.csv", compression=compression).read()


FF_REALS, FF_FAKES = "original_sequences/youtube/c23/videos", "manipulated_sequences/Deepfakes/c23/videos"
ACTORS, SWAPS = "original_sequences/actors/c23/videos", "manipulated_sequences/DeepFakeDetection/c23/videos"
CELEB_FAKE, DEEPER_FAKE = "id<target>_id<source>_<clip>", "<FF++ id>_<actor>"


@pytest.mark.parametrize(
    ("name", "clip", "form"),
    [
        pytest.param("celebdf", "Celeb-real/id0_id1_0000.mp4", "id<person>_<clip>", id="a fake among the real"),
        pytest.param("celebdf", "Celeb-real/0000.mp4", "id<person>_<clip>", id="no person"),
        pytest.param("celebdf", "Celeb-synthesis/id0_0000.mp4", CELEB_FAKE, id="a real among the fakes"),
        pytest.param("celebdf", "Celeb-synthesis/id0_id1_0000 (1).mp4", CELEB_FAKE, id="a copy"),
        pytest.param("celebdf", "YouTube-real/170.mp4", "five digits", id="three digits of five"),
        pytest.param("celebdf-pp", "Celeb-real/0000.mp4", "id<person>_<clip>", id="no person in ++"),
        pytest.param("celebdf-pp", "Celeb-synthesis/FaceSwap/GHOST/0000.mp4", CELEB_FAKE, id="no target in ++"),
        pytest.param("ffpp-kaggle", "original/519_515.mp4", "three digits", id="a fake among Kaggle's pristine"),
        pytest.param("ffpp-kaggle", "FaceSwap/519.mp4", "<target>_<source>", id="a pristine among Kaggle's fakes"),
        pytest.param("ffpp", f"{FF_REALS}/5191.mp4", "three digits", id="four digits"),
        pytest.param("ffpp", f"{FF_REALS}/51.mp4", "three digits", id="two digits"),
        pytest.param("ffpp", f"{FF_REALS}/519_515.mp4", "three digits", id="a fake among the pristine"),
        pytest.param("ffpp", f"{FF_REALS}/519 (1).mp4", "three digits", id="a copy of a pristine"),
        pytest.param("ffpp", f"{FF_FAKES}/519.mp4", "<target>_<source>", id="a pristine among fakes"),
        pytest.param("ffpp", f"{FF_FAKES}/519-515.mp4", "<target>_<source>", id="a dash"),
        pytest.param("ffpp", f"{FF_FAKES}/519_515_1.mp4", "<target>_<source>", id="a third number"),
        pytest.param("ffpp", f"{FF_FAKES}/x519_515.mp4", "<target>_<source>", id="a letter before"),
        pytest.param("dfd", f"{ACTORS}/24_23__kitchen_pan__YR5OVD4S.mp4", "<actor>__<scene>", id="a swap among actors"),
        pytest.param("dfd", f"{ACTORS}/24_kitchen_pan.mp4", "<actor>__<scene>", id="one underscore"),
        pytest.param("dfd", f"{SWAPS}/24__kitchen_pan.mp4", "<target>_<source>__<scene>__", id="an actor among swaps"),
        pytest.param("dfd", f"{SWAPS}/24_23__kitchen_pan.mp4", "<target>_<source>__<scene>__", id="no id"),
        pytest.param("dfd", f"{SWAPS}/24_23__pan__yr5ovd4s.mp4", "<target>_<source>", id="an id in small letters"),
        pytest.param("dfd", f"{SWAPS}/24_23__pan__YR5OVD4S (1).mp4", "<target>_<source>", id="a copy of a swap"),
        *(
            pytest.param("deeperforensics", f"manipulated_videos/end_to_end/{file}.mp4", DEEPER_FAKE, id=file)
            for file in ("480", "480_515", "48_W133", "480_W133_1", "480_X133")
        ),
    ],
)
def test_a_name_that_is_not_the_official_one_is_refused_with_its_path(name, clip, form, tmp_path):
    make_files(tmp_path, clip)
    (tmp_path / TEST_LIST).write_text("1 YouTube-real/00170.mp4")
    options = {"version": "v1"} if name == "celebdf" else {}
    with pytest.raises(ValueError, match=re.escape(form)) as caught:
        READERS[name](root=tmp_path, out=tmp_path / "videos.csv", **options).read()
    assert str(tmp_path / clip) in str(caught.value)


@pytest.mark.parametrize("missing", [None, "train", "val", "test"])
@pytest.mark.parametrize(("read", "ending", "content"), [(read_pairs, "json", "[]"), (read_splits, "txt", "")])
def test_official_split_files_may_be_empty_and_a_missing_one_is_named(read, ending, content, missing, tmp_path):
    for split in {*SPLITS} - {missing}:
        (tmp_path / f"{split}.{ending}").write_text(content)
    if missing is None:
        assert read(tmp_path) == {}
    else:
        with pytest.raises(FileNotFoundError, match=rf"{missing}\.{ending}.*--splits"):
            read(tmp_path)
