"""Links of README and docs lead somewhere, and the site has every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("pretrained/*/README.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_site_has_every_page_and_every_picture_is_shown() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(nav: object) -> set[str]:
        if isinstance(nav, str):
            return {nav}
        parts = nav.values() if isinstance(nav, dict) else nav
        return set().union(*map(pages, parts))  # type: ignore[arg-type]

    assert pages(site["nav"]) == {path.name for path in (ROOT / "docs").glob("*.md")}
    shown = "".join(page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "examples" / "heads" / "README.md"])
    for picture in (ROOT / "docs").iterdir():
        if picture.suffix in (".png", ".jpg"):
            assert picture.name in shown, picture
