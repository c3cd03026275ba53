"""The registry of data sets: `multiattn index` and the README follow from it, also for one registered from outside."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from multiattn.datasets import readers
from multiattn.datasets.manifest import IndexOptions, Listing, require_root, video_files, video_row
from multiattn.datasets.readers import READERS
from multiattn.tables import FAKE, REAL, VIDEOS
from pipeline import run

README = (Path(readers.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_a_command_and_a_tree_of_every_reader():
    trees = re.findall(r"^### ([\w-]+)\n\n```text\n", README, flags=re.MULTILINE)
    assert trees == list(READERS)
    assert re.findall(r"^multiattn index ([\w-]+)", README.partition("## Layouts")[0], flags=re.MULTILINE) == trees


def test_the_reader_of_the_readme_appears_in_the_help_in_the_error_and_in_a_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(READERS, "mine", None)  # taken out after the test
    example = README.partition("## Another data set")[2].partition("```python\n")[2].partition("```")[0]
    names = (IndexOptions, Listing, require_root, video_files, video_row, dataclass, Path)
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


@pytest.mark.parametrize("name", sorted(set(READERS) - {"deepfakebench"}))
@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_a_root_that_is_no_folder_is_refused_with_the_way_out(kind, name, tmp_path):
    if kind == "file":
        (tmp_path / "root").touch()
    with pytest.raises(FileNotFoundError, match="--root"):
        READERS[name](root=tmp_path / "root", out=tmp_path / "videos.csv").read()


@pytest.mark.parametrize("name", ["dfdc", "ffpp", "dfd", "deeperforensics"])
def test_an_empty_root_gives_no_rows(name, tmp_path):
    listing = READERS[name](root=tmp_path, out=tmp_path / "videos.csv").read()
    assert (listing.rows, listing.absent, listing.unlisted) == ([], [], [])


@pytest.mark.parametrize("name", ["ffpp", "dfd"])
@pytest.mark.parametrize("compression", ["C23", "", "c41"])
def test_an_unknown_compression_is_refused(compression, name, tmp_path):
    with pytest.raises(ValueError, match="--compression: expected one of raw, c0, c23, c40"):
        READERS[name](root=tmp_path, out=tmp_path / "videos.csv", compression=compression).read()
