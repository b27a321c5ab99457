"""mkdocs' hook: pages and charts that are not files of docs/, and links that lead out of it.

On GitHub the pages link to each other and to files of the checkout by relative paths. In the site, what has a page
there is linked, and the name of any other file stands as it is.
"""

import importlib.util
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files outside of docs/ -> their pages.
PAGES = {"examples/README.md": "examples.md", "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"\[([^\]\n]*(?:\n[^\]\n]+)?)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


def charts() -> Any:
    """Return the module that draws the charts; it imports matplotlib."""
    spec = importlib.util.spec_from_file_location("charts", Path(__file__).with_name("charts.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside of docs/, and the charts."""
    for path, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text("utf-8")))
    for name, drawn in charts().drawn(ROOT / "benchmarks" / "results").items():
        files.append(File.generated(config, f"charts/{name}.svg", content=drawn))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to where the site has what they name, and put the charts below their headings."""
    name = page.file.src_uri
    source = {to: path for path, to in PAGES.items()}.get(name, f"docs/{name}")
    if name == "benchmarks.md":
        markdown = charts().placed(markdown)
    fences = list(_FENCE.finditer(markdown))
    inside = [(fence.start(), fence.end()) for fence in fences]

    def led(found: re.Match[str]) -> str:
        if any(start <= found.start() < end for start, end in inside):
            return found[0]
        text, link, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        if path in PAGES or path.startswith("docs/"):
            return f"[{text}]({PAGES.get(path, path.removeprefix('docs/'))}{anchor or ''})"
        return text if text.startswith("`") else f"{text} (`{path}`)" if text != path else f"`{path}`"

    return _LINK.sub(led, markdown)
