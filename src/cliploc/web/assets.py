"""Style sheets and scripts that a page of the server loads; pages in one file have them inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliploc.report.colours import NAME_COLOURS, as_hex
from cliploc.report.html import REPORT_TEMPLATES, Templates

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

TYPES = {"css": "text/css", "js": "text/javascript"}
BASE = "base.css"  # every page's


def asset_routes(templates: Templates, names: list[str]) -> list[Route]:
    """Routes to the assets of a page and to `BASE`, as /static/NAME; read once."""
    from starlette.responses import Response
    from starlette.routing import Route

    def giving(name: str, text: str) -> Route:
        def give(_: Request) -> Response:
            return Response(text, media_type=TYPES[name.rpartition(".")[2]], headers={"Cache-Control": "no-cache"})

        return Route(f"/static/{name}", give)

    return [giving(BASE, _base()), *(giving(name, templates.asset(name)) for name in names)]


def _base() -> str:
    """The colours of pages, of names in legends, and what all pages share."""
    chips = "".join(f".name-{place} {{ background: {as_hex(one)}; }}\n" for place, one in enumerate(NAME_COLOURS))
    return REPORT_TEMPLATES.render("colours.css") + REPORT_TEMPLATES.asset(BASE) + chips
