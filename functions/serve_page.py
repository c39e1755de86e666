"""Serve one page at an onion address of its own, from inside the sandbox. Argument: the page's text (optional).

Sends the address once the network knows it, then serves until its input ends, or a message comes. Needs a box whose
policy offers the Tor routine `publish`; when the session ends, the address is dead.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "serve_page"
# image = "python"
# tor = ["publish"]
# ///

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

PORT = 8080


def serve_page(text="hello from a sandbox\n"):
    page = text.encode()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_):
            """Who came is nobody's business."""

    server = HTTPServer(("127.0.0.1", PORT), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service = api.tor.publish(80, PORT)
    api.send(service.address)
    with suppress(EOFError):
        api.recv()
