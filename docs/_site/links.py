"""A hook of MkDocs: links to files outside of docs/ become links into the repository, if the file exists."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<=\]\()(?P<target>\.\./[^)#\s]+)(?P<anchor>#[^)]*)?(?=\))")
_HIDDEN = re.compile(r"^<!-- (?:setup|check)\n.*?^-->\n?", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page without its hidden code, with links that leave docs/ pointing into the repository."""
    here = Path(page.file.abs_src_path).parent

    def outside(found: re.Match[str]) -> str:
        target = (here / found["target"]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return found[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_path} links to {found['target']}, which does not exist")
        return f"{config.repo_url}/blob/main/{target.relative_to(ROOT).as_posix()}{found['anchor'] or ''}"

    return _LINK.sub(outside, _HIDDEN.sub("", markdown))
