"""Cropped faces of any program as a faces folder: class folders, CSVs, archives, and what is wrong with them."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multiattn.__main__ import main
from multiattn.datasets.crops import read_crops
from multiattn.tables import FOLDS, VIDEOS
from multiattn.video.crops.images import CropImages, crop_loader
from multiattn.video.crops.recipe import CropRecipe, read_recipe
from multiattn.video.extraction.extract import extraction_settings
from multiattn.video.extraction.faces_folder import extract_faces, read_faces_folder
from pipeline import run

SIZE = 40


def picture(grey: int, *, size_wh: tuple[int, int] = (SIZE, SIZE), kind: str = "JPEG", **options) -> bytes:
    """A picture of one grey level."""
    file = io.BytesIO()
    Image.new("RGB", size_wh, (grey,) * 3).save(file, kind, **options)
    return file.getvalue()


def put(root: Path, contents: dict[str, bytes]) -> Path:
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def pack(archive: Path, contents: dict[str, bytes], *, mode: str = "w", kind: int = tarfile.GNU_FORMAT) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, mode, format=kind) as file:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return archive


def csv(path: Path, text: str) -> Path:
    path.write_text("\n".join(line.strip() for line in text.strip().splitlines()) + "\n")
    return path


class Set:
    """A root, a CSV beside it, and the faces folder."""

    def __init__(self, folder: Path) -> None:
        self.root, self.list, self.faces = folder / "root", folder / "list.csv", folder / "faces"
        self.root.mkdir()

    def read(self, text: str | None = None, **options):
        labels = None if text is None else csv(self.list, text)
        return read_crops(self.root, faces=self.faces, labels=labels, **options)

    def greys(self) -> dict[str, int]:
        """video_id, frame and track -> the grey level that is read."""
        faces, _, _ = read_faces_folder(self.faces)
        images = CropImages(self.faces, faces["crop"], read_recipe(self.faces).size)
        keys = zip(faces["video_id"], faces["frame_index"], faces["track"], strict=True)
        return {f"{v} {f} {t}": int(images[row][0, 0, 0]) for row, (v, f, t) in enumerate(keys)}

    def videos(self) -> dict[str, dict]:
        table = read_faces_folder(self.faces)[2]
        return {row["video_id"]: row for row in table.to_dict("records")}

    def statuses(self) -> dict[str, tuple]:
        table = read_faces_folder(self.faces)[1].set_index("video_id")
        return {video: tuple(row) for video, *row in table.itertuples()}


@pytest.fixture
def crops(tmp_path) -> Set:
    return Set(tmp_path)


PARTS = "path,video,label,source_video,part,split"
PAIR = f"""{PARTS}
    part0/a.jpg,a,0,a,part0,train
    part0/b.jpg,b,1,a,part0,train"""
NAMES = {"column": ("original=source_video",)}


@pytest.mark.parametrize("stored", ["files", "an archive", "an archive in a folder"])
def test_a_csv_is_read_unedited_whether_pictures_lie_in_files_or_in_an_archive(stored, crops):
    contents = {"part0/a.jpg": picture(20), "part0/b.jpg": picture(90)}
    text = PAIR
    if stored == "files":
        put(crops.root, contents)
    elif stored == "an archive":
        pack(crops.root / "train.tar", contents)
    else:
        pack(crops.root / "x/train.tar", {f"./{name}": content for name, content in contents.items()})
        text = PAIR.replace("part0/a.jpg", "x/part0/a.jpg").replace("part0/b.jpg", "x/part0/b.jpg")
    listing = crops.read(text, **NAMES)
    assert (listing.absent, listing.unlisted) == ([], [])
    assert crops.greys() == {"crops/a 0 0": 20, "crops/b 0 0": 90}
    a, b = crops.videos().values()
    assert (a["label"], a["original"], a["part"], a["split"]) == (0, "", "part0", "train"), "a real is its own source"
    assert (b["label"], b["original"]) == (1, "crops/a")
    inside = {"files": "", "an archive": "train.tar/", "an archive in a folder": "x/train.tar/"}[stored]
    assert a["path"] == f"{inside}part0/a.jpg"
    assert sorted(path.name for path in crops.faces.iterdir() if not path.name.startswith(".")) == [
        "faces.json", "faces.parquet", "video_status.csv", "videos.csv"
    ], "nothing is copied"  # fmt: skip
    assert read_recipe(crops.faces).foreign


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT], ids=str)
def test_members_of_every_form_of_tar_are_read_where_they_lie_also_by_workers(kind, crops):
    names = ["real/a.png", f"fake/{'d' * 60}/{'n' * 90}.png", "fake/sub.d/b.PNG"]
    names += ["fake/x.tar@5+6/1.png", "fake/two\nlines.png"]
    names += ["fake/ä ß.png"] if kind != tarfile.USTAR_FORMAT else []
    contents = {name: picture(10 * number, kind="PNG") for number, name in enumerate(names, start=1)}
    pack(crops.root / "all.tar", contents, kind=kind)
    crops.read()
    assert sorted(crops.greys().values()) == [10 * number for number in range(1, len(names) + 1)]
    faces, _, _ = read_faces_folder(crops.faces)
    batches = crop_loader(CropImages(crops.faces, faces["crop"], 32), num_workers=1, batch_size=3)
    seen = np.concatenate([batch.numpy()[:, 0, 0, 0] for batch in batches])
    assert sorted(seen.tolist()) == [10 * number for number in range(1, len(names) + 1)]


def test_class_folders_make_a_picture_a_video_in_files_and_archives(crops):
    put(crops.root, {"Real/x/a.webp": picture(50, kind="WEBP", lossless=True), "fake/a.png": picture(60, kind="PNG")})
    put(crops.root, {"masks/a.png": picture(1, kind="PNG"), "real/notes.txt": b"x", "real/.hidden.jpg": b"x"})
    pack(crops.root / "fake/more.tar", {"b.jpg": picture(70), "readme.md": b"x"})
    listing = crops.read(name="my_set")
    assert listing.unlisted == ["masks/a.png"]
    assert crops.greys() == {"my_set/Real/x/a 0 0": 50, "my_set/fake/a 0 0": 60, "my_set/fake/b 0 0": 70}
    assert {video: row["label"] for video, row in crops.videos().items()} == {
        "my_set/Real/x/a": 0, "my_set/fake/a": 1, "my_set/fake/b": 1
    }  # fmt: skip


def test_many_crops_a_video_take_frames_from_the_csv_or_from_their_names(crops):
    put(
        crops.root,
        {f"{name}.png": picture(grey, kind="PNG") for grey, name in enumerate(["v/10", "v/9", "w/x", "w/b"])},
    )
    crops.read("""path,label,video,identity,method,compression,extra
        v/10.png,FAKE,v.mp4,id3,Deepfakes,c23,?
        v/9.png,FAKE,v.mp4,id3,Deepfakes,c23,?
        w/x.png,real,w.mp4,id3,original,c23,?
        w/b.png,real,w.mp4,id3,original,c23,?""")
    assert crops.greys() == {"crops/v 9 0": 1, "crops/v 10 0": 0, "crops/w 0 0": 3, "crops/w 1 0": 2}
    v, w = crops.videos().values()
    assert (v["path"], v["method"], v["target_id"], v["compression"]) == ("v", "Deepfakes", "id3", "c23")
    assert (w["method"], w["label"]) == ("", 0)
    assert read_recipe(crops.faces).num_frames == 2
    crops.read("""path,label,video,frame,track
        v/10.png,1,v,7,0
        v/9.png,1,v,7,1""")
    assert crops.greys() == {"crops/v 7 0": 0, "crops/v 7 1": 1}, "the data set is indexed anew, and nothing is left"


def test_a_list_of_videos_finds_their_pictures(crops):
    """As `metadata.csv` of the crops of 224 pixels on Kaggle names them."""
    put(crops.root, {"aaa.jpg": picture(1), "bbb.jpg": picture(2)})
    listing = crops.read(
        """videoname,original_width,label,original
        aaa.mp4,1920,REAL,
        bbb.mp4,1920,FAKE,aaa.mp4
        ccc.mp4,1920,FAKE,aaa.mp4""",
        column=("path=videoname",),
    )
    assert (listing.absent, listing.unlisted) == (["ccc.mp4"], [])
    assert {video: (row["label"], row["original"]) for video, row in crops.videos().items()} == {
        "crops/aaa": (0, ""),
        "crops/bbb": (1, "crops/aaa"),
    }


def test_crops_of_many_sizes_train_at_the_smallest_or_leave_small_ones_out(crops):
    put(crops.root, {f"real/{side}.jpg": picture(side, size_wh=(side, side)) for side in (20, 48, 64)})
    listing = crops.read()
    assert (read_recipe(crops.faces).size, len(crops.greys())) == (48, 2)
    assert crops.statuses()["crops/real/20"] == ("unreadable", 1, 0, "real/20.jpg: too small (20 pixels)")
    assert any("1 of 3 pictures are left out (1 too small)" in note for note in listing.notes)
    assert any("48 to 64, median 56 pixels: train at 48 or less, or leave small ones out" in n for n in listing.notes)
    crops.read(size=64)
    assert (read_recipe(crops.faces).size, len(crops.greys())) == (64, 1)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(b"", "unreadable (empty)", id="empty"),
        pytest.param(b"no picture", "unreadable (no header of a JPEG, PNG or WebP)", id="text"),
        pytest.param(picture(1)[:-9], "unreadable (cut off)", id="cut off"),
        pytest.param(picture(1, size_wh=(40, 41)), "not square (40x41)", id="not square"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["file", "archive"])
def test_a_bad_picture_is_a_counted_row_and_not_a_crop(packed, content, fault, crops):
    contents = {"real/a.jpg": content, "fake/b.jpg": picture(9)}
    pack(crops.root / "a.tar", contents) if packed else put(crops.root, contents)
    listing = crops.read()
    where = "a.tar/real/a.jpg" if packed else "real/a.jpg"
    assert crops.statuses()["crops/real/a"] == ("unreadable", 1, 0, f"{where}: {fault}")
    assert crops.greys() == {"crops/fake/b 0 0": 9}
    assert any(
        note.startswith("1 of 2 pictures are left out") and f"{where}: {fault}" in note for note in listing.notes
    )
    assert len(listing.rows) == 2


def test_what_is_listed_and_not_there_is_absent_and_what_no_line_names_is_unlisted(crops):
    put(crops.root, {"part0/b.jpg": picture(1), "part0/c.jpg": picture(2)})
    listing = crops.read(PAIR, **NAMES)
    assert (listing.absent, listing.unlisted) == (["part0/a.jpg"], ["part0/c.jpg"])
    assert {video: row["original"] for video, row in crops.videos().items()} == {"crops/b": "crops/a"}


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        pytest.param("path\na.jpg", {}, "expected a column 'label'.* --column label=THEIRS", id="no labels"),
        pytest.param("file,label\na.jpg,0", {}, "expected a column 'path'.* found file, label", id="no paths"),
        pytest.param(
            "path,label\na.jpg,2", {}, "row 0: column 'label': expected one of 0, 1.* found '2'", id="label 2"
        ),
        pytest.param("path,label\na.jpg,", {}, "column 'label'", id="an empty label"),
        pytest.param("path,label,split\na.jpg,1,x", {}, "'split': expected one of train, val, test", id="split"),
        pytest.param("path,label\n../a.jpg,0", {}, r"expected a path below .* found '\.\./a.jpg'", id="climbs"),
        pytest.param("path,label\n/etc/a.jpg,0", {}, "expected a path below", id="absolute"),
        pytest.param("path,label,video\na.jpg,0,../v", {}, r"video '\.\./v'", id="a video that climbs"),
        pytest.param("path,label\na.jpg,0\na.jpg,1", {}, "a.jpg is listed twice", id="two labels of one crop"),
        pytest.param(
            "path,label,video\na.jpg,0,v\nb.jpg,1,v",
            {},
            "row 1: crops/v is label 1, and label 0 in row 0",
            id="a video",
        ),
        pytest.param("path,label,frame\na.jpg,0,x", {}, "expected whole numbers", id="a frame that is no number"),
        pytest.param(
            "path,label,video,frame\na.jpg,0,v,1\nb.jpg,0,v,1", {}, "each frame and track once", id="one frame twice"
        ),
        pytest.param("path,label\na.jpg,0", {"column": ("nose=x",)}, "--column nose=x: expected", id="no such column"),
        pytest.param("path,label\na.jpg,0", {"column": ("part=x",)}, "THEIRS of path, label", id="none of theirs"),
        pytest.param("path,label\nbad.jpg,0", {}, "none of 1 pictures is usable; .*bad.jpg: unreadable", id="all bad"),
        pytest.param("path,label\na.jpg,0", {"size": 8}, "--size: expected 32 to 4096", id="size"),
        pytest.param("path,label\na.jpg,0", {"name": "A b"}, "--name", id="name"),
        pytest.param("path,label,label\na.jpg,0,1", {}, "list.csv: .* 'label' stands 2 times", id="one column twice"),
        pytest.param("path,label\na.jpg", {}, "list.csv: .* row 0: expected 2 cells", id="a short row"),
        pytest.param("path;label\na.jpg;0", {}, "found path;label. Put commas between", id="semicolons"),
        pytest.param("p,label\na.jpg,0", {"column": ("path=p", "path=label")}, "each of our columns once", id="two"),
        pytest.param(None, {"column": ("path=p",)}, "Pass it as --labels CSV", id="a column of no list"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(text, options, expected, crops):
    put(crops.root, {"a.jpg": picture(1), "b.jpg": picture(2), "bad.jpg": b"x"})
    with pytest.raises(ValueError, match=expected):
        crops.read(text, **options)
    assert not crops.faces.exists()


def test_rows_that_repeat_one_another_are_counted(crops):
    put(crops.root, {"a.jpg": picture(1)})
    assert any(
        "1 row that repeats another is left out" in note for note in crops.read("path,label\na.jpg,0\na.jpg,0").notes
    )
    assert len(crops.greys()) == 1


def test_two_archives_with_one_path_are_told_apart_by_their_names(crops):
    for grey, archive in enumerate(("a.tar", "b.tar"), start=1):
        pack(crops.root / archive, {"real/x.jpg": picture(grey)})
    with pytest.raises(ValueError, match=r"several archives, as a.tar/real/x.jpg and as b.tar/real/x.jpg"):
        crops.read()
    with pytest.raises(ValueError, match="Name one of these paths"):
        crops.read("path,label\nreal/x.jpg,0")
    crops.read("path,label,video\na.tar/real/x.jpg,0,a\nb.tar/real/x.jpg,1,b")
    assert crops.greys() == {"crops/a 0 0": 1, "crops/b 0 0": 2}


def test_a_copy_unpacked_beside_its_archive_is_taken_and_counted(crops):
    pack(crops.root / "a.tar", {"real/x.jpg": picture(1)})
    put(crops.root, {"real/x.jpg": picture(2)})
    assert any("1 picture lies in an archive and unpacked" in note for note in crops.read().notes)
    assert crops.greys() == {"crops/real/x 0 0": 2}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param("a.tar.gz", "gz", "a compressed one. Unpack it once: `tar xf", id="compressed"),
        pytest.param("a.tar", b"text that is no archive" * 99, "expected an uncompressed tar archive", id="no archive"),
        pytest.param("a.tar", "cut", "expected an uncompressed tar archive", id="cut off"),
        pytest.param("a.tar", "damaged", "members end after 1536 bytes, and something else follows", id="damaged"),
    ],
)
def test_an_archive_that_cannot_be_read_in_place_is_refused(name, content, expected, crops):
    path = crops.root / name
    if content == "gz":
        pack(path, {"real/a.jpg": picture(1)}, mode="w:gz")
    elif content == "cut":
        pack(path, {"real/a.jpg": picture(1), "fake/b.bin": b"1" * 4096, "fake/b.jpg": picture(1)})
        path.write_bytes(path.read_bytes()[:4000])
    elif content == "damaged":  # in the header of the second picture
        pack(path, {"real/a.jpg": b"1" * 512, "fake/b.jpg": picture(1)})
        path.write_bytes(path.read_bytes().replace(b"fake/b", b"fake/c"))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        crops.read()


def test_of_an_archive_the_last_of_one_path_counts_and_what_cannot_be_unpacked_here_is_named(crops, caplog):
    path = pack(crops.root / "a.tar", {"real/a.jpg": picture(1), "../real/b.jpg": picture(2)})
    with tarfile.open(path, "a", format=tarfile.GNU_FORMAT, encoding="latin-1") as file:
        for name in ("real/a.jpg", "real/\xe9.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(picture(7))
            file.addfile(member, io.BytesIO(picture(7)))
    crops.read()
    assert crops.greys() == {"crops/real/a 0 0": 7}
    assert "2 files are left out: a.tar/../real/b.jpg (it is empty, absolute" in caplog.text
    assert "e9.jpg (its name is not UTF-8)" in caplog.text


def test_a_plain_archive_with_a_compressed_name_is_read(crops):
    """As WildDeepfake ships its sequences."""
    pack(crops.root / "1.tar.gz", {"./real/a.jpg": picture(5)}, mode="w")
    crops.read()
    assert crops.greys() == {"crops/real/a 0 0": 5}


def test_an_archive_is_read_where_the_system_cannot_read_at_a_place(crops, monkeypatch):
    """As on Windows."""
    pack(crops.root / "a.tar", {"real/a.jpg": picture(5), "real/b.jpg": picture(6)})
    monkeypatch.delattr(os, "pread")
    crops.read()
    assert crops.greys() == {"crops/real/a 0 0": 5, "crops/real/b 0 0": 6}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("packed", [False, True], ids=["file", "archive"])
def test_a_picture_that_became_smaller_than_the_folders_size_is_refused_by_name(packed, kind, crops):
    contents = {"real/a.jpg": picture(1, size_wh=(64, 64), kind=kind), "fake/b.jpg": picture(9, size_wh=(64, 64))}
    smaller = picture(1, size_wh=(48, 48), kind=kind)
    contents["real/a.jpg"] += b"\0" * 999 + b"\xff\xd9"  # room for the smaller one, at one size of the member
    pack(crops.root / "a.tar", contents) if packed else put(crops.root, contents)
    crops.read()
    contents["real/a.jpg"] = smaller.ljust(len(contents["real/a.jpg"]) - 2, b"\0") + b"\xff\xd9"
    pack(crops.root / "a.tar", contents) if packed else put(crops.root, contents)
    faces, _, _ = read_faces_folder(crops.faces)
    images = CropImages(crops.faces, faces["crop"], 24)  # half of the smaller one: no full decoding
    assert int(images.read(0)[0, 0, 0]) == 9
    with pytest.raises(ValueError, match=r"real/a\.jpg: expected a square crop of at least 64 pixels, found 48x48"):
        images.read(1)


def test_an_archive_that_changed_or_went_is_named_when_its_crops_are_read(crops):
    archive = pack(crops.root / "a.tar", {"real/a.jpg": picture(1), "real/b.jpg": picture(2)})
    crops.read()
    archive.write_bytes(
        pack(crops.root.parent / "b.tar", {"real/c.jpg": picture(1), "real/d.jpg": picture(2)}).read_bytes()
    )
    with pytest.raises(ValueError, match=r"a\.tar: real/a.jpg is no longer at byte .* `multiattn index crops` command"):
        crops.greys()
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(ValueError, match="is no longer at byte"):
        crops.greys()
    crops.root.rename(crops.root.with_name("moved"))
    with pytest.raises(FileNotFoundError, match=r"faces.json: root: expected the folder .* correct the line"):
        crops.greys()


def test_two_data_sets_of_one_root_share_a_faces_folder_if_their_recipes_agree(crops, tmp_path):
    put(crops.root, {"a/real/x.jpg": picture(1), "a/fake/y.jpg": picture(2)})
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"detector": "mtcnn", "template": "their boxes"}))
    crops.read("path,label\na/real/x.jpg,0", name="one", recipe=recipe)
    crops.read("path,label\na/fake/y.jpg,1", name="two", recipe=recipe)
    assert set(crops.greys()) == {"one/a/real/x 0 0", "two/a/fake/y 0 0"}
    assert (read_recipe(crops.faces).detector, read_recipe(crops.faces).template) == ("mtcnn", "their boxes")
    assert read_recipe(crops.faces).foreign
    with pytest.raises(ValueError, match=r"made otherwise: .*template 'their boxes' and now 'crops of three'"):
        crops.read("path,label\na/fake/y.jpg,1", name="three")
    with pytest.raises(ValueError, match=r"belongs to .*root, not to"):
        read_crops(crops.root / "a", faces=crops.faces)


def test_a_recipe_that_this_code_can_follow_lets_runs_cut_videos_alike(crops, tmp_path, capsys):
    put(crops.root, {"real/x.jpg": picture(1)})
    (tmp_path / "recipe.json").write_text('{"alignment": "box", "margin": 0.83, "shift": 0.07}')
    crops.read(recipe=tmp_path / "recipe.json")
    assert read_recipe(crops.faces) == CropRecipe(alignment="box", margin=0.83, shift=0.07, size=SIZE, num_frames=32)
    read_recipe(crops.faces).require_makeable()
    settings = extraction_settings(
        detector="mtcnn", weights=None, threshold=None, device="cpu", num_frames=1, size=SIZE
    )
    with pytest.raises(ValueError, match=r"has the crops of .* Choose another folder"):
        extract_faces(VIDEOS.empty(), [], crops.faces, settings, jobs=1)
    before = (crops.faces / "faces.json").read_bytes()
    (tmp_path / "recipe.json").write_text('{"alignment": "box", "margin": 83}')
    words = ["--root", crops.root, "--faces", crops.faces, "--out", tmp_path / "v.csv"]
    words += ["--recipe", tmp_path / "recipe.json"]
    assert main(["index", "crops", *map(str, words)]) == 2
    assert "recipe.json: --margin: expected 0.5 to 4.0" in capsys.readouterr().err
    assert (crops.faces / "faces.json").read_bytes() == before


@pytest.mark.parametrize(
    ("packed", "names"),
    [
        pytest.param(False, ["real/a.jpg", "fake/b.jpg"], id="class folders"),
        pytest.param(True, ["real/a.jpg", "fake/b.jpg"], id="an archive"),
        pytest.param(False, ["a.jpg", "b.jpg"], id="files of the root"),
        pytest.param(True, ["a.jpg", "a2.jpg", "b.jpg"], id="an archive that is a video's folder"),
    ],
)
def test_check_does_not_count_crops_among_files_that_are_no_videos(packed, names, crops, tmp_path, capsys):
    contents = {name: picture(9) for name in names}
    pack(crops.root / "a.tar", contents) if packed else put(crops.root, contents)
    labels = [] if "/" in names[0] else ["--labels", tmp_path / "list.csv"]
    csv(
        tmp_path / "list.csv",
        "\n".join(["path,label,video", *(f"{name},{name[0] == 'b':d},{name[0]}" for name in names)]),
    )
    run("index", "crops", "--root", crops.root, "--faces", crops.faces, "--out", tmp_path / "videos.csv", *labels)
    capsys.readouterr()
    run("check", "--videos", tmp_path / "videos.csv")
    assert "left out" not in capsys.readouterr().err


def test_the_command_writes_both_tables_and_check_finds_nothing_wrong(crops, tmp_path, capsys):
    contents = {f"part{n}/{kind}{n}.jpg": picture(10 * n) for n in range(5) for kind in "rf"}
    archive = pack(crops.root / "all.tar", contents)
    split = ["train"] * 4 + ["val"]
    rows = [f"part{n}/{k}{n}.jpg,{k}{n},{int(k == 'f')},r{n},part{n},{split[n]}" for n in range(5) for k in "rf"]
    labels = csv(tmp_path / "list.csv", "\n".join([PARTS, *rows]))
    out, folds = tmp_path / "videos.csv", tmp_path / "folds.csv"
    options = ("--root", crops.root, "--faces", crops.faces, "--labels", labels, "--out", out)
    run("index", "crops", *options, "--column", "original=source_video")
    run("folds", "--videos", out, "--splits", "train", "--out", folds, "--num-folds", 2)
    assert len(FOLDS.read(folds)) == 8
    run("check", "--videos", out, "--folds", folds)
    assert "2 labelled videos outside the test split are in no fold" in (shown := capsys.readouterr().out)
    assert "0 leaks, 0 warnings, 1 note." in shown
    archive.unlink()
    run("check", "--videos", out, "--folds", folds)
    assert "10 of 10 files of the table are not below" in " ".join(capsys.readouterr().out.split())
    assert VIDEOS.read(out)["video_id"].tolist() == sorted(crops.videos())
