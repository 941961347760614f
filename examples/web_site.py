"""A small web site, which stands for everything outside: its books show who came, and above all who did not.

    python examples/web_site.py --port 0 --books books.jsonl

Every path answers ``GET`` with a short HTML page. Behaviours (`HttpBehaviour`) come from ``POST /control``
and from words in the query (``/page?!redirect=http://127.0.0.1:1/``).
"""

from __future__ import annotations

import html
from urllib.parse import unquote

import msgspec
from faults import BARE, HttpBehaviour, answer, answered_before
from serving import Books, Control, Exchange, argument_parser, open_books, serve

HTML = "text/html; charset=utf-8"


class WebSite:
    """The site's only endpoint."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.control = Control(HttpBehaviour, BARE)

    async def answer(self, exchange: Exchange) -> None:
        """Answer any request, and keep the books of it."""
        entry = self.books.start(exchange, {"method": exchange.method, "path": exchange.path})
        try:
            behaviour = self.control.behaviour(entry, unquote(exchange.query_string))
            if await answered_before(exchange, behaviour):
                return
            status = 200 if exchange.method == "GET" else 405
            page = f"<!doctype html><title>Example</title><p>The page at {html.escape(exchange.path)}."
            await answer(exchange, behaviour, status, page.encode(errors="replace"), HTML)
        except msgspec.ValidationError as fault:
            await answer(exchange, HttpBehaviour(), 400, html.escape(str(fault)).encode(), HTML)
        finally:
            self.books.end(entry, "ended", {"left_early": exchange.client_left()})


def main() -> None:
    """Run the site until it is told to stop."""
    parser = argument_parser("an example web site")
    options = parser.parse_args()
    serve(WebSite(open_books(parser, options)), options)


if __name__ == "__main__":
    main()
