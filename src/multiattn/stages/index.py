"""Official data set tree -> videos.csv (and videos.json: where each data set lies).

multiattn index dfdc --root /data/dfdc --out data/videos.csv
multiattn index ffpp --root /data/ffpp --compression c23 --splits /data/splits --out data/videos.csv --append
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Union

from multiattn.command_line import parse, results
from multiattn.datasets.celebdf import read_celebdf
from multiattn.datasets.deeperforensics import read_deeperforensics
from multiattn.datasets.dfd import read_dfd
from multiattn.datasets.dfdc import read_dfdc
from multiattn.datasets.dfdc_preview import read_dfdc_preview
from multiattn.datasets.ffpp import LEVEL_FOLDERS, read_ffpp
from multiattn.datasets.labelled_folder import read_labelled_folder
from multiattn.datasets.manifest import Listing, write_manifest

Compression = Literal[tuple(LEVEL_FOLDERS)]


@dataclass(frozen=True, kw_only=True)
class Index:
    """A data set, one subclass each: its lower-case name is the command's word, its fields are the options."""

    root: Path
    """The folder that holds the data set's own folders, as the README shows them."""
    out: Path
    """The videos.csv to write."""
    append: bool = False
    """Keep the other data sets already in the table."""


@dataclass(frozen=True, kw_only=True)
class Dfdc(Index):
    """DFDC: training parts, validation and test folders, Kaggle's folders; whatever of them is there."""

    def list(self) -> Listing:
        return read_dfdc(self.root)


@dataclass(frozen=True, kw_only=True)
class DfdcPreview(Index):
    """The DFDC preview set: dataset.json, method_A, method_B, original_videos."""

    def list(self) -> Listing:
        return read_dfdc_preview(self.root)


@dataclass(frozen=True, kw_only=True)
class Ffpp(Index):
    """FaceForensics++: pristine clips and the five manipulation methods at one compression level."""

    compression: Compression = "c23"
    splits: Path | None = None
    """The folder of the official train.json, val.json, test.json; without it the split stays empty."""

    def list(self) -> Listing:
        return read_ffpp(self.root, compression=self.compression, splits=self.splits)


@dataclass(frozen=True, kw_only=True)
class Dfd(Index):
    """Google's DeepFakeDetection in the FaceForensics++ tree, at one compression level; it has no official split."""

    compression: Compression = "c23"

    def list(self) -> Listing:
        return read_dfd(self.root, compression=self.compression)


@dataclass(frozen=True, kw_only=True)
class Celebdf(Index):
    """Celeb-DF v1 or v2: the clips of the test list are the test split, all others the training split."""

    version: Literal["v1", "v2"] = "v2"
    test_list: Path | None = None
    """List_of_testing_videos.txt, where it is not in the root."""

    def list(self) -> Listing:
        return read_celebdf(self.root, version=self.version, test_list=self.test_list)


@dataclass(frozen=True, kw_only=True)
class Deeperforensics(Index):
    """DeeperForensics-1.0's fakes; index FaceForensics++ c23 into the same table for the real class."""

    types: tuple[str, ...] = ()
    """Only these folders of manipulated_videos, such as end_to_end; none named means all."""
    splits: Path | None = None
    """The folder of the official train.txt, val.txt, test.txt, where it is not lists/splits below the root."""

    def list(self) -> Listing:
        return read_deeperforensics(self.root, types=self.types, splits=self.splits)


@dataclass(frozen=True, kw_only=True)
class Deepfakebench(Index):
    """DeepfakeBench's preprocessed frames: also writes a faces folder of them, without decoding anything again."""

    json: Path
    """Their JSON of data set, label, split, video and frames."""
    faces: Path
    """The faces folder to write."""

    def list(self) -> Listing:
        from multiattn.datasets.deepfakebench import read_deepfakebench

        return read_deepfakebench(self.root, json_file=self.json, faces=self.faces)


@dataclass(frozen=True, kw_only=True)
class Folder(Index):
    """A folder of your own: clips in real/ and fake/, or a CSV of path and label."""

    labels: Path | None = None
    """A CSV of `path,label`: paths below the root, 1 = fake, 0 = real."""
    name: str = "folder"
    """The data set's name in the table."""

    def list(self) -> Listing:
        return read_labelled_folder(self.root, labels=self.labels, name=self.name)


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Union[tuple(Index.__subclasses__())], argv, stage="index", doc=__doc__)  # noqa: UP007 (no list of them)
    listing = options.list()
    table = write_manifest(listing, options.out, append=options.append)
    counts = table.assign(label=table["label"].map({0: "real", 1: "fake", -1: "unknown"}))
    counts = counts.groupby(["dataset", "split", "label"]).size().unstack(fill_value=0)
    results(
        counts.to_string(),
        f"{len(table)} videos in {options.out}; {len(listing.absent)} listed but absent, "
        f"{len(listing.unlisted)} present but unlisted.",
    )
