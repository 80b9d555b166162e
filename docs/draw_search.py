"""Takes the pictures of the search page in docs/images/, in headless Chromium.

Usage: python docs/draw_search.py [--chromium=chromium]
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import unipt_jax
from unipt_jax.search import app

IMAGES = Path(__file__).parent / "images"
PORT = 7861


def take(page: Page, name: str) -> None:
    """Writes what the page shows, in 256 colours, which a page of crops does not miss."""
    page.wait_for_timeout(800)  # Until pictures are drawn and the status has settled.
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    taken.quantize(256).save(IMAGES / name, optimize=True)


def ask(page: Page, text: str) -> None:
    """Asks for somebody and clicks the first who is found."""
    page.fill("#query textarea", text)
    page.click("#search")
    page.wait_for_timeout(1500)
    page.locator("#results button:has(img)").first.click()


def main() -> None:
    """Serves the page of the embedded sample, and visits it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    flags = parser.parse_args()
    model = unipt_jax.load("examples/small_clip")
    with tempfile.TemporaryDirectory() as index, sync_playwright() as playwright:
        gallery = unipt_jax.Gallery.from_images(
            "examples/pedestrians/imgs", model, clip=model, index_directory=index
        )
        served = app.serve(gallery, host="127.0.0.1", port=PORT, wait=False)
        browser = playwright.chromium.launch(
            executable_path=flags.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(f"http://127.0.0.1:{PORT}")
        page.wait_for_selector("#query textarea")
        ask(page, app.EXAMPLES[0])
        take(page, "search.png")
        page.get_by_text("Attributes", exact=True).click()
        page.locator("[id='filter-upper_clothes.color'] input").click()
        page.get_by_role("option").filter(has_text="blue").click()
        page.keyboard.press("Escape")
        take(page, "search_attributes.png")
        browser.close()
        served.close(verbose=False)


if __name__ == "__main__":
    main()
