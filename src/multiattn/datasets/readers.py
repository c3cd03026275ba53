"""The registry of data sets: name -> options and reader; `multiattn index` takes its subcommands and help from it."""

from multiattn.datasets.celebdf import Celebdf, CelebdfPp
from multiattn.datasets.crops import Crops
from multiattn.datasets.deeperforensics import DeeperForensics
from multiattn.datasets.deepfakebench import DeepfakeBench
from multiattn.datasets.df40 import Df40
from multiattn.datasets.dfdc import Dfdc, DfdcPreview
from multiattn.datasets.fakeavceleb import FakeAVCeleb
from multiattn.datasets.ffpp import Dfd, Ffpp, FfppKaggle
from multiattn.datasets.labelled_folder import Folder, Frames
from multiattn.datasets.manifest import IndexOptions
from multiattn.datasets.wilddeepfake import WildDeepfake

READERS: dict[str, type[IndexOptions]] = {
    "dfdc": Dfdc,
    "dfdc-preview": DfdcPreview,
    "ffpp": Ffpp,
    "ffpp-kaggle": FfppKaggle,
    "dfd": Dfd,
    "celebdf": Celebdf,
    "celebdf-pp": CelebdfPp,
    "deeperforensics": DeeperForensics,
    "fakeavceleb": FakeAVCeleb,
    "deepfakebench": DeepfakeBench,
    "df40": Df40,
    "wilddeepfake": WildDeepfake,
    "crops": Crops,
    "folder": Folder,
    "frames": Frames,
}
