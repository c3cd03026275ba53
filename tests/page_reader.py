"""An HTML page as a test reads it."""

from html.parser import HTMLParser


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
