"""The pages: they build without a warning, and what they point to is there."""

import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from urllib.parse import urlsplit

import nbformat
import pytest

from tests import documents
from unipt_jax.config import command_line, schema

ROOT = documents.ROOT
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
READ = [
    *documents.pages(),
    *(ROOT / name for name in ("CHANGELOG.md", "benchmarks/RESULTS.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
    *sorted(ROOT.glob("notebooks/*.ipynb")),
]
each_page = pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page):
    """Returns Markdown: of a notebook, all that is between its cells of code."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def dead(page):
    """Yields what is wrong with a page's links."""
    for link in documents.links(text_of(page)):
        url = urlsplit(link)
        if url.scheme:
            # Whether it answers is no matter for tests, which read nothing from the network.
            if url.scheme != "https" or "." not in url.netloc or re.search(r"[\s<>\"]", link):
                yield f"{link} is no address"
            continue
        target = page if not url.path else page.parent / url.path
        if not target.exists():
            yield f"{link}: there is no such file"
        elif url.fragment and url.fragment not in documents.anchors(text_of(target)):
            yield f"{link}: there is no such heading"


# ---------------------------------------------------------------------------- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages, of a copy: some are written beside those that are there."""
    place = tmp_path_factory.mktemp("site")
    source = place / "docs"
    # What is read above it.
    (place / "unipt_jax").symlink_to(ROOT / "unipt_jax")
    (place / "benchmarks").mkdir()
    for name in ("README.md", "CHANGELOG.md", "pyproject.toml", "benchmarks/RESULTS.md"):
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("_build", "api"))
    command = ["--nitpicky", "--fail-on-warning", "--keep-going", "--quiet", source, place / "html"]
    # One device, and no programs that are kept: nothing is computed.
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *command],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return place / "html"


def test_every_module_has_a_page(site):
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "unipt_jax").rglob("*.py")
        if path.name != "modeling_unipt.py"  # Written for torch; it travels with the weights.
    ]
    pages = {path.stem for path in (site / "api").glob("*.html")}
    assert pages == set(modules)


def test_every_page_is_there(site):
    """With its own text: Sphinx writes pages of its own, such as search.html, over others."""
    for page in (ROOT / "docs").glob("*.md"):
        built = (site / f"{page.stem}.html").read_text()
        headings = re.findall(r"^#+ ([\w ,]+)$", documents.prose(page.read_text()), re.MULTILINE)
        for heading in headings:
            assert re.search(rf"<h\d>{heading}<", built), f"{page.name}: {heading}"


def test_every_field_is_explained(site):
    page = (site / "configuration.html").read_text()
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))
    for stage, cls in schema.STAGES.items():
        for name, *_ in schema.describe(cls):
            assert f">{name}<" in page, (stage, name)
    assert "0.999 at least 0, below 1 of the second moment (released code: 0.98)" in plain


def test_every_flag_is_explained(capsys):
    with pytest.raises(SystemExit):
        command_line.parse("", ["--help"])
    flags = set(re.findall(r"--\w+", capsys.readouterr().out.partition("Pass")[0]))
    page = (ROOT / "docs/configuration.md").read_text()
    assert len(flags) > 5 and all(f"`{flag}`" in page for flag in flags)


def test_shapes_are_readable(site):
    page = (site / "api/unipt_jax.losses.contrastive.html").read_text()
    plain = re.sub(r"<[^>]+>", "", page)
    assert "image_embedding: Float[Array, 'B D']" in plain
    assert "jaxlib" not in plain


def test_the_site_fetches_nothing(site):
    """Neither fonts nor scripts come from elsewhere."""
    used = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="([^"]+)"')
    for page in site.glob("*.html"):
        found = used.findall(page.read_text())
        assert found and not [place for place in found if "//" in place]


def test_links_out_of_the_pages_lead_to_the_repository(site):
    index = (site / "index.html").read_text()
    home = URLS["Repository"]
    assert f'href="{home}/blob/main/LICENSE"' in index
    assert 'href="paper.html#the-paper-and-the-code-its-authors-released"' in index
    assert f'href="{home}/blob/main/launch/examples"' in (site / "devices.html").read_text()


# ---------------------------------------------------------------------------- links


@each_page
def test_no_link_is_dead(page):
    assert list(dead(page)) == []


@each_page
def test_the_repository_has_one_address(page):
    """That of pyproject.toml, in links, badges and notebooks."""
    owner = urlsplit(URLS["Repository"]).path.strip("/")
    text = page.read_text()
    for found in re.findall(
        r"github(?:\.com)?/([\w.-]+/[\w.-]*unipt[\w-]*jax)", text, re.IGNORECASE
    ):
        assert found == owner


def test_the_readme_compares_as_its_page_does():
    """A row that both tables have says the same in both."""

    def rows(page):
        lines = re.findall(r"^\| ([\w -]+) \|(.*)$", page.read_text(), re.MULTILINE)
        return {name: re.sub(r"[`]", "", cells) for name, cells in lines}

    short, full = rows(ROOT / "README.md"), rows(ROOT / "docs/comparison.md")
    both = short.keys() & full.keys()
    assert len(both) > 5 and {name: short[name] for name in both} == {it: full[it] for it in both}


def test_pictures_are_pictures():
    for page in READ:
        for link in re.findall(r"!\[[^\]]*\]\(([^()\s]+)\)", text_of(page)):
            if not urlsplit(link).scheme:
                head = (page.parent / link).read_bytes()[:24]
                assert head[:8] == b"\x89PNG\r\n\x1a\n"
                assert min(struct.unpack(">II", head[16:24])) > 100


def test_places_that_are_named_elsewhere_are_there():
    """Code and pages say "README, Tests" or "docs/scaling.md" of what stands there."""
    mention = re.compile(r"\b(README|docs/[\w-]+\.md), ([A-Z][\w ]+?)(?=[).;,]|$)", re.MULTILINE)
    files = [ROOT / "Makefile"]
    for folder in ("unipt_jax", "benchmarks", "configs", "launch", "examples", "docs"):
        files += [it for it in (ROOT / folder).rglob("*") if it.suffix in (".py", ".md", ".sh")]
    for path in files:
        if {"_build", "api"} & set(path.parts):
            continue
        text = path.read_text()
        for page in re.findall(r"\bdocs/[\w-]+\.md\b", text):
            assert (ROOT / page).exists(), (path, page)
        for page, title in mention.findall(text):
            name = "README.md" if page == "README" else page
            wanted = title.lower().replace(" ", "-")
            assert wanted in documents.anchors((ROOT / name).read_text()), (path, title)


# ---------------------------------------------------------------------------- the tests' own tests


def test_links_of_markdown():
    text = "[a](b.md#c) ![d](e.png) [![f](g.svg)](https://h.i) `x[0](y)`\n```\n[no](no)\n```\n"
    assert sorted(documents.links(text)) == ["b.md#c", "e.png", "g.svg", "https://h.i"]


def test_anchors_of_headings():
    text = "# The paper's tables\n## `launch/train.py`\n### GPUs, TPUs\n```\n# no\n```\n"
    assert documents.anchors(text) == {"the-papers-tables", "launchtrainpy", "gpus-tpus"}


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("[a](none.md)", "no such file"),
        ("[a](#none)", "no such heading"),
        ("[a](page.md#one-two)", None),
        ("[a](http://a.b)", "no address"),
        ("[a](https://a.b/c)", None),
    ],
)
def test_dead_links_are_found(tmp_path, link, fault):
    page = tmp_path / "page.md"
    page.write_text(f"# One two\n\n{link}\n")
    found = list(dead(page))
    assert bool(found) == bool(fault) and all(fault in line for line in found)


def test_relinking(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from pages import relink

    text = "[a](../docs/b.md#c) [d](RESULTS.md) [e](https://f.g) [h](#i)"
    assert relink(text, "benchmarks", "R") == (
        "[a](b.md#c) [d](R/blob/main/benchmarks/RESULTS.md) [e](https://f.g) [h](#i)"
    )
