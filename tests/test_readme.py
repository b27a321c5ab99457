"""The README is short, its links and those of the docs lead somewhere, and its commands are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

from .pages import DOCS, INDEX, LINK, PAGES, ROOT, prose
from .peek import cli

README = (ROOT / "README.md").read_text("utf-8")
OF_ELSEWHERE = {"examples.md", "changes.md", "contributing.md"}  # which website/pages.py takes from outside of docs/


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_70_lines_of_120_columns() -> None:
    assert len(README.splitlines()) <= 70
    assert max(map(len, README.splitlines())) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_heading(page: Path) -> None:
    broken = []
    for link in (link for link in LINK.findall(prose(page)) if "://" not in link):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_linked_from_the_index_and_the_index_from_the_readme() -> None:
    assert f"({INDEX.relative_to(ROOT).as_posix()})" in README
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall(INDEX.read_text("utf-8"))}
    assert not [page.name for page in DOCS.rglob("*.md") if page != INDEX and page.resolve() not in linked]


def test_every_page_has_its_place_in_the_site() -> None:
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text("utf-8"))
    nav = re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"]))
    assert sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")) == sorted(set(nav) - OF_ELSEWHERE)


def test_every_command_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = re.findall(r"(?m)(?:^|`)make ([a-z-]+)", "\n".join(page.read_text("utf-8") for page in PAGES))
    assert {"demo", "test"} <= set(named) <= targets
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    used = re.findall(r"(?m)(?:^|`)hf-lora ([a-z]+)", "\n".join(page.read_text("utf-8") for page in PAGES))
    assert {"push", "inspect"} <= set(used) <= set(commands)
