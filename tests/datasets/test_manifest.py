"""videos.csv and videos.json: writing, appending, and finding the files again."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from made_trees import make_files

from multiattn.datasets.dfdc import read_dfdc
from multiattn.datasets.ffpp import read_ffpp
from multiattn.datasets.manifest import (
    NUM_LISTED,
    VIDEO_SUFFIXES,
    Listing,
    folder_manifest,
    locate_videos,
    roots_path,
    video_files,
    video_files_below,
    video_id,
    video_row,
    write_manifest,
)
from multiattn.runtime.files import read_json
from multiattn.tables import VIDEOS


@pytest.fixture
def dfdc(tmp_path) -> Path:
    """Two parts of one real clip each."""
    for number in (0, 1):
        folder = make_files(tmp_path / "dfdc" / f"dfdc_train_part_{number}", f"r{number}.mp4")
        (folder / "metadata.json").write_text(json.dumps({f"r{number}.mp4": {"label": "REAL", "split": "train"}}))
    return tmp_path / "dfdc"


@pytest.fixture
def ffpp(tmp_path) -> Path:
    """One pristine clip at two levels of compression."""
    clips = (f"original_sequences/youtube/{level}/videos/000.mp4" for level in ("c23", "c40"))
    return make_files(tmp_path / "ffpp", *clips)


@pytest.fixture
def videos_csv(tmp_path) -> Path:
    return tmp_path / "out" / "videos.csv"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.mp4", "d/a"),
        ("part/a.mp4", "d/part/a"),
        ("part/a.b.mp4", "d/part/a.b"),
        ("part.0/a.MP4", "d/part.0/a"),
        ("a", "d/a"),
    ],
)
def test_a_video_id_is_the_data_set_and_the_path_without_extension(path, expected):
    assert video_id("d", path) == expected
    assert video_row("d", path)["video_id"] == expected


def test_video_files_are_known_by_their_extension_in_any_case_and_sorted_also_those_below(tmp_path):
    make_files(tmp_path, "b.mp4", "a.MOV", "c.txt", "mp4", "d.webm", ".mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert video_files(tmp_path) == ["a.MOV", "b.mp4", "d.webm"]
    assert video_files(tmp_path / "folder.mp4") == video_files(tmp_path / "nothing") == []
    make_files(tmp_path, "x/a.mp4", "x/y/c.MOV", "x/notes.txt", ".hidden/d.mp4", "x/.e.mp4")
    assert video_files_below(tmp_path) == ["a.MOV", "b.mp4", "d.webm", "x/a.mp4", "x/y/c.MOV"]
    assert video_files_below(tmp_path / "folder.mp4") == video_files_below(tmp_path / "nothing") == []


CLIPS = sorted(f"{suffix[1:]}{suffix}" for suffix in VIDEO_SUFFIXES)


@pytest.fixture
def odd_folder(tmp_path) -> Path:
    """One sound clip of each kind, and files that are none."""
    folder = make_files(tmp_path / "odd", *CLIPS, "mp4.gif", "notes.rm", "labels.csv")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / os.fsdecode(b"bad\xff.mp4")).touch()
    return folder


@pytest.mark.parametrize("list_files", [video_files, video_files_below])
def test_clips_of_every_ending_are_listed_and_what_is_left_out_is_counted_and_named(list_files, odd_folder, caplog):
    assert list_files(odd_folder) == CLIPS
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (
        f"{odd_folder}: 6 files are left out: bad\\udcff.mp4 (its name is not UTF-8), gone.mp4 (not a file), "
        "loop.mp4 (Too many levels of symbolic links), notes.rm (no video's ending), pipe.mp4 (not a file) and 1 more"
    )


def test_folders_behind_odd_links_cost_nothing_else_and_are_read_once(tmp_path):
    """Two folders that link to each other, in several ways, a folder that links to itself, and one of no UTF-8 name."""
    make_files(tmp_path, "x/a.mp4", "y/b.mp4", f"{os.fsdecode(b'bad' + bytes([255]))}/c.mp4")
    for number in range(4):
        (tmp_path / f"x/l{number}").symlink_to("../y")
        (tmp_path / f"y/l{number}").symlink_to("../x")
    (tmp_path / "loop").symlink_to("loop")
    assert video_files_below(tmp_path) == ["x/a.mp4", "y/b.mp4"]


def test_a_tree_with_odd_names_is_indexed_but_for_them(dfdc, videos_csv):
    part = dfdc / "dfdc_train_part_0"
    (part / "loop.mp4").symlink_to("loop.mp4")
    (dfdc / "loop").symlink_to("loop")
    make_files(part, os.fsdecode(b"bad\xff.mp4"), os.fsdecode(b"bad\xff/x.mp4"))
    assert len(write_manifest(read_dfdc(dfdc), videos_csv, append=False)) == 2


def test_the_table_is_written_sorted_with_its_root_beside_it(dfdc, videos_csv):
    listing = read_dfdc(dfdc)
    listing.rows.reverse()
    table = write_manifest(listing, videos_csv, append=False)
    assert table["video_id"].tolist() == ["dfdc/dfdc_train_part_0/r0", "dfdc/dfdc_train_part_1/r1"]
    pd.testing.assert_frame_equal(VIDEOS.read(videos_csv), VIDEOS.validate(table, "table"))
    assert read_json(roots_path(videos_csv)) == {
        "dfdc": {"root": str(dfdc.resolve()), "videos": 2, "absent": [], "unlisted": []}
    }


def test_nothing_found_is_refused_and_says_how_many_were_only_listed(dfdc, videos_csv):
    for clip in dfdc.glob("*/*.mp4"):
        clip.unlink()
    with pytest.raises(ValueError, match=r"found no clip of one; 2 clips are listed but absent.*--root"):
        write_manifest(read_dfdc(dfdc), videos_csv, append=False)
    assert not videos_csv.exists()


def test_absent_and_unlisted_clips_are_counted_with_the_first_few_and_notes_are_logged(tmp_path, videos_csv, caplog):
    rows = [video_row("d", "a.mp4", label=0)]
    absent = [f"gone{number}.mp4" for number in range(NUM_LISTED + 2)]
    notes = ["100 % odd", "two"]
    listing = Listing(dataset="d", root=tmp_path, rows=rows, absent=absent, unlisted=["stray.mp4"], notes=notes)
    with caplog.at_level("WARNING", logger="multiattn"):
        write_manifest(listing, videos_csv, append=False)
    assert [record.getMessage() for record in caplog.records] == [
        "7 clips listed but absent: gone0.mp4, gone1.mp4, gone2.mp4, gone3.mp4, gone4.mp4 and 2 more",
        "1 clip present but unlisted: stray.mp4",
        *notes,
    ]
    assert read_json(roots_path(videos_csv))["d"]["absent"] == absent


def test_absent_clips_of_two_levels_of_one_data_set_are_all_kept(tmp_path, videos_csv):
    for level in ("c23", "c40"):
        rows = [video_row("d", f"{level}/a.mp4", label=0)]
        absent, unlisted = [f"{level}/gone.mp4", "both.mp4"], [f"{level}/stray.mp4"]
        listing = Listing(dataset="d", root=tmp_path, rows=rows, absent=absent, unlisted=unlisted)
        write_manifest(listing, videos_csv, append=True)
    kept = read_json(roots_path(videos_csv))["d"]
    assert kept["absent"] == ["c23/gone.mp4", "both.mp4", "c40/gone.mp4"]
    assert kept["unlisted"] == ["c23/stray.mp4", "c40/stray.mp4"]


def test_a_second_data_set_is_appended_with_a_root_of_its_own(dfdc, ffpp, videos_csv):
    assert len(write_manifest(read_dfdc(dfdc), videos_csv, append=True)) == 2, "to nothing"
    table = write_manifest(read_ffpp(ffpp), videos_csv, append=True)
    assert table["dataset"].tolist() == ["dfdc", "dfdc", "ffpp"]
    assert len(VIDEOS.read(videos_csv)) == 3
    located = locate_videos(VIDEOS.read(videos_csv), videos_csv)
    assert {path.name for path in located.values()} == {"r0.mp4", "r1.mp4", "000.mp4"}


def test_without_append_the_table_is_made_anew(dfdc, ffpp, videos_csv):
    write_manifest(read_dfdc(dfdc), videos_csv, append=False)
    write_manifest(read_ffpp(ffpp), videos_csv, append=False)
    assert VIDEOS.read(videos_csv)["dataset"].unique().tolist() == ["ffpp"]
    assert list(read_json(roots_path(videos_csv))) == ["ffpp"]


def test_appending_the_same_clips_again_is_refused_and_changes_nothing(dfdc, videos_csv):
    write_manifest(read_dfdc(dfdc), videos_csv, append=False)
    before = videos_csv.read_bytes(), roots_path(videos_csv).read_bytes()
    with pytest.raises(ValueError, match=r"2 of 2 clips of .* leave --append out, which writes the table anew\.$"):
        write_manifest(read_dfdc(dfdc), videos_csv, append=True)
    assert (videos_csv.read_bytes(), roots_path(videos_csv).read_bytes()) == before


def test_appending_the_same_data_set_from_another_root_is_refused(dfdc, videos_csv):
    write_manifest(read_dfdc(dfdc / "dfdc_train_part_0"), videos_csv, append=False)
    for root in (dfdc / "dfdc_train_part_1", dfdc):
        with pytest.raises(ValueError, match="dfdc is already indexed from") as caught:
            write_manifest(read_dfdc(root), videos_csv, append=True)
        assert str(dfdc / "dfdc_train_part_0") in str(caught.value)
        assert str(caught.value).endswith(f"leave --append out and index {dfdc}.")


def test_a_second_compression_of_one_root_is_appended_and_the_count_is_of_both(ffpp, videos_csv):
    write_manifest(read_ffpp(ffpp, compression="c23"), videos_csv, append=False)
    write_manifest(read_ffpp(ffpp, compression="c40"), videos_csv, append=True)
    assert len(VIDEOS.read(videos_csv)) == 2
    assert read_json(roots_path(videos_csv))["ffpp"]["videos"] == 2


@pytest.mark.parametrize("paths", [("a.mp4", "a.avi"), ("x/a.ts", "x/a.gif")])
def test_clips_that_differ_in_their_ending_only_are_refused_by_both_names(paths, tmp_path, videos_csv):
    listing = Listing(dataset="d", root=tmp_path, rows=[video_row("d", path, label=0) for path in paths])
    with pytest.raises(ValueError, match=f"{paths[0]} and {paths[1]} differ in their ending only.*Rename"):
        write_manifest(listing, videos_csv, append=False)


def test_data_sets_appended_at_the_same_time_are_all_kept(tmp_path, videos_csv):
    """Readers of the table wait for one another: each takes the folder's lock from reading to writing."""

    def append(number: int) -> None:
        listing = Listing(dataset=f"d{number}", root=tmp_path, rows=[video_row(f"d{number}", "a.mp4", label=0)])
        write_manifest(listing, videos_csv, append=True)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(append, range(4)))
    names = [f"d{number}" for number in range(4)]
    assert VIDEOS.read(videos_csv)["dataset"].tolist() == sorted(read_json(roots_path(videos_csv))) == names


def test_videos_are_located_below_their_root(dfdc, videos_csv):
    table = write_manifest(read_dfdc(dfdc), videos_csv, append=False)
    assert locate_videos(table, videos_csv) == {
        "dfdc/dfdc_train_part_0/r0": dfdc.resolve() / "dfdc_train_part_0/r0.mp4",
        "dfdc/dfdc_train_part_1/r1": dfdc.resolve() / "dfdc_train_part_1/r1.mp4",
    }


def test_moved_or_deleted_clips_are_refused_with_their_count_and_found_again_through_root(dfdc, ffpp, videos_csv):
    write_manifest(read_dfdc(dfdc), videos_csv, append=False)
    table = write_manifest(read_ffpp(ffpp), videos_csv, append=True)
    moved = dfdc.rename(dfdc.with_name("moved"))
    with pytest.raises(FileNotFoundError, match=r"no such file, nor 1 other of 3 .*pass --root"):
        locate_videos(table, videos_csv)
    located = locate_videos(table, videos_csv, roots={"dfdc": moved})
    assert all(path.is_relative_to(moved if "dfdc/" in video else ffpp) for video, path in located.items())
    (moved / "dfdc_train_part_1/r1.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"r1\.mp4: no such file, nor 0 others of 3"):
        locate_videos(table, videos_csv, roots={"dfdc": moved})


def test_a_data_set_without_a_known_root_is_refused(dfdc, videos_csv):
    table = write_manifest(read_dfdc(dfdc), videos_csv, append=False)
    roots_path(videos_csv).write_text("{}")
    with pytest.raises(ValueError, match="no root of dfdc"):
        locate_videos(table, videos_csv)


@pytest.mark.parametrize(
    "content", ["[]", '{"dfdc": "data"}', '{"dfdc": {"root": 3}}', "[" * 99_999], ids=["a list", "text", "3", "deep"]
)
def test_a_manifest_of_another_form_is_refused_by_its_name(content, dfdc, videos_csv):
    table = write_manifest(read_dfdc(dfdc), videos_csv, append=False)
    roots_path(videos_csv).write_text(content)
    listing = Listing(dataset="d", root=dfdc, rows=[video_row("d", "a.mp4", label=0)])
    for use in (lambda: locate_videos(table, videos_csv), lambda: write_manifest(listing, videos_csv, append=True)):
        with pytest.raises(ValueError, match=re.escape(str(roots_path(videos_csv)))):
            use()


@pytest.mark.parametrize("with_root", [False, True], ids=["kept root", "--root"])
def test_no_videos_are_located_nowhere(with_root, dfdc, videos_csv):
    write_manifest(read_dfdc(dfdc), videos_csv, append=False)
    assert locate_videos(VIDEOS.empty(), videos_csv, roots={"dfdc": dfdc} if with_root else None) == {}


def test_a_plain_folder_becomes_a_table_of_unlabelled_videos(tmp_path):
    table = folder_manifest(make_files(tmp_path, "b.mp4", "a.mp4", "labels.csv"))
    assert table["video_id"].tolist() == ["folder/a", "folder/b"]
    assert set(table["label"]) == {-1}
    make_files(tmp_path / "c", "f_1.png")
    assert folder_manifest(tmp_path)["path"].tolist() == ["a.mp4", "b.mp4", "c"]
    assert folder_manifest(tmp_path, ["b.mp4"])["path"].tolist() == ["b.mp4"]


@pytest.mark.parametrize("filenames", [None, []], ids=["all of an empty folder", "none asked for"])
def test_a_folder_without_videos_is_refused(filenames, tmp_path):
    with pytest.raises(ValueError, match="expected videos"):
        folder_manifest(tmp_path, filenames)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder of videos"):
        folder_manifest(tmp_path / "nothing")


def test_two_videos_that_differ_in_extension_only_keep_it_in_their_ids(tmp_path):
    for name in ("a.mp4", "a.mov", "b.mp4"):
        (tmp_path / name).touch()
    videos = folder_manifest(tmp_path)
    assert videos["path"].tolist() == ["a.mov", "a.mp4", "b.mp4"]
    assert videos["video_id"].tolist() == ["folder/a.mov", "folder/a.mp4", "folder/b"]
