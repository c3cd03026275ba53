"""Named aggregators: the plain ones, and the rules of the DFDC's winners and of ISPL, each for one model.

What `multiattn tune` tries. Models are blended after them; where a winner clipped, the recipe has that clip. The
formulas, their sources and what was mended are with the rules, in `frame_rules.py` and `track_rules.py`;
`dataclasses.replace(recipe, faithful=True)` brings a fault back.
"""

from collections.abc import Mapping
from types import MappingProxyType

from multiattn.scoring.aggregation import Aggregator

RECIPES: Mapping[str, Aggregator] = MappingProxyType(
    {
        "mean": Aggregator(),
        "mean_of_tracks": Aggregator(tracks="mean"),
        "highest_track": Aggregator(tracks="max"),
        "faces": Aggregator(tracks="faces"),
        "mean_logit": Aggregator(frames="mean_logit"),
        "median": Aggregator(frames="median"),
        "median_logit": Aggregator(frames="median_logit"),
        "trimmed": Aggregator(frames="trimmed"),
        "power": Aggregator(frames="power"),
        "top_k": Aggregator(frames="top_k"),
        "signed_power": Aggregator(frames="signed_power"),
        "dead_zone": Aggregator(frames="dead_zone"),
        "max_abs": Aggregator(frames="max_abs"),
        "average_vote": Aggregator(frames="average_vote"),
        "vote": Aggregator(frames="vote"),
        # The 1st: all faces of all persons are one list.
        "selim": Aggregator(frames="confident", tracks="pooled"),
        # The 2nd, the authors of the multi-attention paper: the mean of one face a frame.
        "wm": Aggregator(frames="mean", tracks="first"),
        # The 3rd: made for networks trained on mixed labels.
        "ntech": Aggregator(frames="sharpened", tracks="pooled"),
        # The 4th, and the same for its two networks b3 and r34.
        "robust_forensics": Aggregator(frames="gated", tracks="faces"),
        "robust_forensics_shrunk": Aggregator(frames="gated", tracks="faces_shrunk"),
        # The 5th: its 3D networks, and its 2D network.
        "medics": Aggregator(frames="mean", tracks="mean", clip=0.001),
        "medics_2d": Aggregator(frames="median", tracks="mean", clip=0.001),
        # The 41st: the mean logit of one face a frame.
        "ispl": Aggregator(frames="mean_logit", tracks="first"),
    }
)
"""Name -> aggregator. `gated` apart, none depends on the order of the frames."""
