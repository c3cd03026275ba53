"""Where the mask of a manipulated clip lies: a video of the same length that is bright where the face was changed."""

from multiattn.datasets import dfd, ffpp

METHODS_WITHOUT_MASKS = ("FaceShifter",)
METHODS_OF = {
    ffpp.DATASET: tuple(method for method in ffpp.METHODS if method not in METHODS_WITHOUT_MASKS),
    dfd.DATASET: (dfd.METHOD,),
}
_LEVELS = {folder for folders in ffpp.LEVEL_FOLDERS.values() for folder in folders}


def mask_of(dataset: str, path: str) -> str | None:
    """The mask video of a clip: `manipulated_sequences/<method>/masks/videos/<name>`, one for all compression levels.

    Source: the FaceForensics++ download script.

    Args:
        dataset: the row's `dataset`.
        path: the row's `path`, below the data set's root.

    Returns:
        The mask's path below the same root, whether or not it was downloaded; None where none was released: pristine
        clips, FaceShifter, and data sets other than `ffpp` and `dfd`.
    """
    match path.split("/"):
        case ["manipulated_sequences", method, level, "videos", name] if level in _LEVELS:
            if method in METHODS_OF.get(dataset, ()):
                return f"manipulated_sequences/{method}/masks/videos/{name}"
    return None
