"""An HTML page as a test reads it."""

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np


class Reader(HTMLParser):
    """Checks that tags close in order; keeps images, words and whatever would be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.images, self.words, self.loaded = [], [], [], []
        self.feed(page)
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if tag in ("script", "link", "iframe"):
            self.loaded.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href") and value[:5] != "data:"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def picture_in(image: dict[str, str]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the photograph that an image of the page carries."""
    content = base64.b64decode(re.fullmatch(r"data:image/jpeg;base64,(\S+)", image["src"])[1])
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
