"""Finds people in a folder of crops: a table in the terminal, or, without a query, a web page.

python launch/search.py --config=configs/search.py --config.checkpoint=DIR --config.images=DIR
    --config.query="a man in red"
"""

from collections import defaultdict

from etils import epath

from unipt_jax.config import schema
from unipt_jax.config.command_line import main
from unipt_jax.search import app, terminal
from unipt_jax.search.gallery import Gallery


def run(config: schema.Search, workdir: epath.Path | None, resume: bool) -> None:
    """Brings the index up to date, and answers; it lies in --workdir, or in the user's cache."""
    gallery = Gallery.from_images(
        config.images,
        config.checkpoint,
        clip=config.clip or None,
        index_directory=workdir and str(workdir),
        batch_size=config.batch_size,
    )
    terminal.tell_faults(gallery)
    if not (config.query or config.picture):
        app.serve(gallery, host=config.host, port=config.port)
        return
    where = defaultdict(list)
    for name, _, phrase in (each.partition("=") for each in config.where):
        where[name].append(phrase)
    find, what = gallery.search, config.query
    if config.picture:
        find, what = gallery.search_image, config.picture
    hits = find(what, config.k, without=config.without, where=where)
    terminal.show(terminal.table(what, hits, len(gallery)))
    if config.sheet:
        terminal.write_sheet(gallery, hits, config.sheet)
        print(f"contact sheet: {config.sheet}")


if __name__ == "__main__":
    main(
        run,
        __doc__,
        takes=schema.Search,
        check=app.check,
        alone=True,
        remote=False,
        claims=False,
    )
