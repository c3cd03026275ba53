"""WildDeepfake: sequences of faces cut out of videos of the internet, 224 x 224 PNG, in tar archives.

Source of the layout: README of deepfakeinthewild/deepfake-in-the-wild, and `wilddeepfake.py` of
dfwb-research/deepfake-workbench. Below `real_train`, `real_test`, `fake_train` and `fake_test` (the README writes a
space) lie archives `<number>.tar.gz`, which are not compressed, with `<shard>/<real or fake>/<sequence>/<frame>.png`;
a picture's name is its frame's number in the video. The top folder decides label and split: the one inside may say
otherwise, and shards bear the same numbers in each.

Nobody says which sequences are of one video, who they show or what a fake was made from. A shard is a `part`, so that
folds with `--group part` at least leave neighbours together.
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.datasets.crops import find_pictures
from multiattn.datasets.crops_folder import CropVideo, write_crops_folder
from multiattn.datasets.manifest import IndexOptions, Listing, require_root
from multiattn.runtime.crop_files import path_in_archive
from multiattn.tables import FAKE, REAL

DATASET = "wilddeepfake"
TOPS = {
    f"{name}_{split}": {"label": label, "split": split}
    for name, label in (("real", REAL), ("fake", FAKE))
    for split in ("train", "test")
}


def read_wilddeepfake(root: Path, *, faces: Path) -> Listing:
    """List the sequences, and make a faces folder of their pictures, which stay in their archives or folders.

    Pictures that do not lie in a sequence's folder are `unlisted`. Raises as `write_crops_folder`, and for an archive
    that cannot be read in place.
    """
    require_root(root, ", ".join(TOPS))
    listing = Listing(dataset=DATASET, root=root)
    present, shadowed = find_pictures(root, listing)
    videos: dict[str, CropVideo] = {}
    for path, address in sorted(present.items()):
        for same in shadowed.get(path, [address]):
            is_whole = path.split("/")[2:3] in (["real"], ["fake"]) and path not in shadowed
            place = path if is_whole else path_in_archive(same)  # an archive without its shard's level
            top, *below = place.split("/")
            if top.replace(" ", "_") not in TOPS or len(below) < 3:
                listing.unlisted.append(place)
                continue
            values = {**TOPS[top.replace(" ", "_")], "part": f"{top}/{below[0]}"}
            sequence = place.rpartition("/")[0]
            videos.setdefault(f"{DATASET}/{sequence}", CropVideo(values, sequence)).pictures[same] = {}
    if videos:
        write_crops_folder(faces, listing, videos)
    return listing


@dataclass(frozen=True, kw_only=True)
class WildDeepfake(IndexOptions):
    """WildDeepfake's face sequences, read in their archives: also writes a faces folder of them, and copies nothing."""

    reader = staticmethod(read_wilddeepfake)
    faces: Path
    """The faces folder to write."""
