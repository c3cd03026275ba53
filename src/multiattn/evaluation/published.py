"""The published log losses, each on the one of three DFDC scales it was measured on, and what file names tell.

The scales share a name and nothing else: a model that reaches 0.20 on the released test set is at 0.43 on the private
one, half of whose videos came from the web. So a figure is compared on its own scale or not at all.
"""

import hashlib
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath

from multiattn.video.crops.images import names_digest


@dataclass(frozen=True)
class Scale:
    """One set of videos that figures were published for."""

    name: str
    """`released`, `public` or `private`."""
    title: str
    num_videos: int
    source: str
    """Of the figures."""
    anchors: dict[str, float]
    """Who -> log loss, the lowest first."""
    digest: str = ""
    """`names_digest` of its file names, sorted; empty where they were never released."""


SCALES = {
    "released": Scale(
        "released",
        "the DFDC test set, 5,000 released videos",
        5000,
        "Table 3 of arXiv:2103.02406",
        {
            "Multi-attentional (paper)": 0.1679,
            "NTechLab": 0.1703,
            "WM": 0.1787,
            "Eighteen Years Old": 0.1882,
            "Selim Seferbekov": 0.1983,
            "The Medics": 0.2157,
        },
        "e794590c9b13138d16ff1041cccd7b068105b00271d69d9c4b7ed8c5c392b2c6",
    ),
    "public": Scale(
        "public",
        "Kaggle's public leaderboard, 4,000 videos, since released as DFDC's validation set",
        4000,
        "the teams' own accounts",
        {"The Medics": 0.25322, "WM": 0.28680},
        "55e534f191baf0b36835a6869ed9a6bfb3eca96940a8211ef48fa4635e0080c6",
    ),
    "private": Scale(
        "private",
        "Kaggle's private leaderboard, 10,000 videos, half of them from the web and never released",
        10000,
        "the final leaderboard",
        {
            "Selim Seferbekov": 0.42798,
            "WM": 0.42842,
            "NTechLab": 0.43452,
            "Eighteen Years Old": 0.43476,
            "The Medics": 0.43711,
        },
    ),
}
HASH_BYTES = 5
"""Of `KAGGLE_400`. A name that is none of them is taken for one once in 2.7 billion; some 128 names of ten letters have
the same hash, so the hashes are no list of the names."""
KAGGLE_400 = """
AFw/5moA+mva4AJ/CJfJAoUnKhsCxrWw6ATTLjXtBkU9JP8HYXscNQewhvRxCRNdQj0JI/g/HQlsg8wlCX2Ou3oKHFk4Eg0cliirDU/3W10Nh96t
Xw6Ct0PjEQ9gAskSqHF4ihSsBhg8FM4ODpoVCukTvBUblG/LFWylhA4VsGHoDBZnVEYBF86Epx0YvqxubhjEhUBKGkUzbTobOvFnLhvQZV3QHKix
yaocwUNwCRzDHwNhHPoqY5EfJYgqWR8++wXJH6GFoe4gBiiO9iCPHE0QILLJFvghvW9wiyH2FW4KIn0TQEMiqm3JNCM49IaHJgXL6j4mbnQZgScc
fuoeJ12/zUkoedIMXCjhg0ZdKilVGhoqOvXMEyrfTbV5K8CywhgsJmzO3i7yl7JYL2dZxdkv2qFfNzAGkqWNMMe80VQxOSx/uTFbOLzyMeW2dkgy
5n8hgzMZT0mmM24tXM4zfp9mQTN+y+W4NaaoxWI1yJ+XETXuig50Ngz0xBU2ExjHbDab1ofYNwiN5rE3LgGUOTeKfykrN5YoRYw3qwuDTDlO24n5
Orx1Lr87MkiC+jtovE4yO+ExQ1k8sKiZ8j0LiCAjPXF9IQQ910tVWz3tq2DZPgM7UK4+gf6DMz7g7rGHPyRrwtxAOVeqOUDgboA1Qnev8SxCodkY
60OPlJn8RR/E0RNHSHCLeUgvxpm2SDypUppIbRTZbEn5sFAXTG1CYZ5NIwKKYk2xhOSNTgQeq15OWq4Aq089nHzqT+cjnvlQKiwW01FK6eGOUcUf
AHxR3lNN1FJrpZ/8UpHrjK1SmCvlaVP8+73SVLiEt8xX8ty3B1gutlEFWD3jYEhYwDtQ0VkxUQ3DWWOG7TVZqAsF7VqWhMG4W3HUMTNbew/fQ1wo
T/vaXGqcKtVc4hi/UF3RnELFXzlg/mdgCU/6vWAqXimiYlYmG1JiakgEa2KEu3YgYqL4DfBiv2OfSGPkHt96Y/Sz8EFkTut/I2Roe/USZHvL5ZJk
lLZVH2TP1ps+ZWVhlylmJ3+s6mZm4UiDaBJIPURo0H7YKWkGY/wBaiEYItdq52wt1Wt4O+dKbCtHNJ1tFIx3xW2AunXibiUykPpu/5Hcbm8xfah7
b2ifu4pvtvVdMHE84rsXcbI8I0pyNi9eTXLiMunhcvLnb3FzOrTmW3PQTv4XdFRq51d0kNQZT3SgOnM7dPT4UxB0++QN9XVLt0aSdXMmZqB1nijj
KHW5BSIjdbobn4R4Ax4XH3gFWh0QeC+rN+F5ICP4pXlB1Wn0eZHXb5t56+yg13otW61CfRxJ9zN9rOZfHH5GrvpFfllN9f5+jD5oO36eeYFlf0b4
q35/ZrtN1n+lVviGgGu3WqWAe0rC24GAuB5qg1bgOhSE6YnQE4Uz7Q5uhZ9V3qyF2ClYZoaxkmZOh4/Q+ZiJcxWkj4pFXqlhixfXnRGM6NE7+o24
9l+JjcIzbdiN6LaAUo5otUHJjngGVMqO9PIaDI/PefHukEDNrBeQVVuL8ZML9GlelTsSTxiVj01ZyZXprtxklmqmvOeXamr4BJhfeRNpmHZj922Z
1En6L5tesxIxnDqvfjud8Vblq56imwwOnxYLdWufjSBm2qMt+45xo89WN5SkMmf/t6TOPRpfpdTQNU6mbFDC9qb10aFKp17xuPWoWE4vtqhbMyA0
qK4RxMWo09xPGqm8wqt5qfzwqumqH/UhXqpvca1mqoWXAOerCqQiwKw2zLKHrEfc2k6smkfNJq2pHlHCrh4VV9Wu/jVI26+IfH5rr4/YVxywePq4
nLHVfCNhskAoEDGypcsND7K+fI95ssEaWmO0Ps/PDbRVwI37tJbpWAK2HsiGR7Zus2k6toBPKRC2l7+bCLbG5qd/tv3S5AS3HX0+cLdk4ETFt/MB
ZWO5zjc00boU1Kycuwh1iIm7V7T007vKQCEKvCTW6YW9sKJ/EL6ewzeGvyE2Qg2/S872AL/2q1/FwRMfEY3CjepTOsLB9+HgwyAgD33DMrf8JMNq
1zOTw40RjMzD+l3f1cU/5M8/xjzYzhPHXm17wMeH2044x+Qe/7XH9pytTcjmtL2yyqZ1+L/LKOWOCcuOufnQy4/osd3MmwHJG85AIGSbztqD3kzO
3OHoeM/f6LIF0ICe0kTQxddi7NHLseL60hInqSLSIBru19I84SyF0kB5vKvURHXTO9R0a+iA1g6GLaXWLNNGUNavMYCr1+3uvezYTGe6m9o59o1x
2rMA6R3awhJ+tdrplTYE2wVxNpHbV8dhwdwxBJWt3IwRzN/c2BrXX939LLlF3iB5saDfyRAZA+Aq0lPd4D5i+5/gfl2b5uCUESN04KHAql7hmFzQ
6eJxrJH65Av2n8PkHglG9+QpEfx35E8xTDLkiNWwluSQN7kg5MyL/GDk4h9X8+WY0fu+5kNm7qrmr2Fn7ueIemWk6NdO1hPq8zmzT+sqMVYy7AXE
xZ/sBqivHezZi1k67cL9H8zubyLT4+/hmAP47+bUtZDwraNUFfH5Ets18sYmC6bzYRodmvOCk3629YMJP2r1u/RoevZLh8w69lerXZ72g1o4TPaj
H7QF96FHuaz5y6pgufoJz56M+srEA5/7Q02/TvuQvJyk/DGeXlL9kvrXJv5OoAoa/wpaiPb/UFna6P/Ki2QO/9ap/aY=
"""
"""The first bytes of the SHA-256 of each file name without its ending, sorted, in base 64: the competition's 400 sample
videos, which lie inside dfdc_train_part_0 to 2. Apart from each other, so that any part of the 400 is known."""


def scale_of(names: Iterable[str]) -> Scale | None:
    """The scale whose videos these are, all of them and no others; None for any other videos."""
    digest = names_digest(sorted(names))
    return next((scale for scale in SCALES.values() if scale.digest == digest), None)


def among_kaggles_400(names: Iterable[str]) -> int:
    """How many of these are among the competition's 400 sample videos, whatever their folder and file format."""
    known = _kaggle_400_hashes()
    return sum(hashlib.sha256(PurePath(name).stem.encode()).digest()[:HASH_BYTES] in known for name in names)


@cache
def _kaggle_400_hashes() -> frozenset[bytes]:
    packed = b64decode(KAGGLE_400)  # which ignores the line ends
    return frozenset(packed[start : start + HASH_BYTES] for start in range(0, len(packed), HASH_BYTES))
