"""Draw the picture of the page in the README of `serve`: the answer of the packaged network for a clip of the demo.

    PYTHONPATH=src:tests python tests/serve/draw_page.py CLIP [PICTURE.png]

The demo's clips lie in data/demo/dfdc; they are made from NASA's portrait, which is in the public domain.
"""

import io
import re
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image

import multiattn
from browser import opened_browser, wait_until

COLOURS = 160
SIZE = {"width": 1280, "height": 1190}


def main(clip: str, picture: str = "") -> None:
    """Serve, drop the clip, and keep what is seen in few colours."""
    out = Path(picture or Path(multiattn.__file__).parent / "serve" / "page.png")
    command = [sys.executable, "-m", "multiattn", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+/", line)))
        with opened_browser() as browser:
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            page.goto(address)
            page.set_input_files("#file", clip)
            page.wait_for_selector("#answer:not([hidden])", timeout=300_000)
            wait_until(page, "[...document.images].every((it) => it.complete)")
            seen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        seen.quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
