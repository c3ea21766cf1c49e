"""Make the pictures of the page about the web page: `python docs/make_web_picture.py`.

Trains a few short recipes (see web_shelf.py), serves them on loopback, and takes pictures in a headless
Chromium. What is shown is synthesised, or comes from data that ship with scikit-image and scikit-learn. A run
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, sync_playwright
from web_shelf import stock

from pipelines.registry import Registry
from serving.app import create_app
from serving.store import Store

PICTURES = Path(__file__).parent / "pictures"
PATIENCE = 120.0
"""Seconds until a page that does not come is given up."""


def main() -> None:
    """Train what is missing, serve, and take pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("build/web"), help="folder of runs and registry")
    folder: Path = parser.parse_args().run
    with served(stock(folder), folder / "store") as url, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        with playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as browser:
            context = browser.new_context(viewport={"width": 1200, "height": 1180}, reduced_motion="reduce")
            context.set_default_timeout(1000 * PATIENCE)
            page = context.new_page()
            take_gallery(page, url)
            take_fit(page, url)


def take_gallery(page: Page, url: str) -> None:
    """Take a picture of the gallery."""
    page.goto(url)
    page.locator(".card").first.wait_for()
    for image in page.locator(".plate img").all():
        image.evaluate("image => image.decode()")
    page.screenshot(path=PICTURES / "web-gallery.png")


def take_fit(page: Page, url: str) -> None:
    """Take a picture of a fit that has ended, at the prior's own steps."""
    page.goto(f"{url}#/try?init=image-photos")
    page.get_by_role("button", name="Fit").click()
    page.locator(".live.ended").wait_for()
    page.locator(".live").screenshot(path=PICTURES / "web-try.png")


@contextmanager
def served(uri: str, cache: Path) -> Iterator[str]:
    """Serve a registry on a free port of the loopback interface, in a thread."""
    store = Store(Registry(uri), cache, poll=3600.0)
    server = uvicorn.Server(uvicorn.Config(create_app(store), log_level="error", ws="none"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            deadline = time.monotonic() + PATIENCE
            while not server.started and thread.is_alive() and time.monotonic() < deadline:
                time.sleep(0.05)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
