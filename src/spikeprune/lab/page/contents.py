"""The contents of a page, made from the headings that it has."""

import re
from html import escape, unescape

_HEADING = re.compile(r"<h2>(.*?)</h2>", re.DOTALL)
_PLACE = "<!-- contents -->"


def with_contents(page: str) -> str:
    """The page with an anchor at each heading, and links to them where the template leaves a place for it."""
    titles: list[str] = []

    def anchored(found: re.Match[str]) -> str:
        titles.append(unescape(re.sub(r"<[^>]+>", "", found[1])).strip())
        return f'<h2 id="s{len(titles)}">{found[1]}</h2>'

    page = _HEADING.sub(anchored, page)
    links = "".join(f'<li><a href="#s{n}">{escape(title)}</a></li>' for n, title in enumerate(titles, 1))
    return page.replace(_PLACE, f'<nav class="contents" aria-label="Contents"><ol>{links}</ol></nav>' if titles else "")
