"""Where the tests find a browser, and what becomes of them without one."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REQUIRED = "MULTIATTN_BROWSER"
"""Variable that, with the value `required`, makes an error of what is skipped elsewhere; `.ci/run` sets it."""
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def find_chromium() -> str:
    """The path of Debian's chromium; without one the test skips, or fails where a browser is required."""
    path = shutil.which("chromium")
    if path is None:
        give_up("no chromium on the PATH")
    return path


def give_up(reason: str) -> NoReturn:
    """Skip a test that has no browser, or fail where one is required."""
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{reason}, and {REQUIRED}=required")
    pytest.skip(reason)


@contextmanager
def opened_browser() -> Iterator["Browser"]:
    """A browser that Playwright drives."""
    path = find_chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        give_up("no playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


def wait_until(page: "Page", expression: str, *, seconds: float = 20) -> None:
    """Wait for JavaScript to be true; Playwright's own way is `eval`, which a strict page forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {expression}"
        time.sleep(0.02)
