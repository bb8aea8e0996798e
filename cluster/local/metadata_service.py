"""Stand-in for EC2's metadata service: tokens and the spot notice.

    python metadata_service.py IP_ADDRESS PORT NOTICE_FILE

Like EC2's service with `HttpTokens: required`, it answers only requests with a token.
"""

import argparse
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NOTICE_PATH = "/latest/meta-data/spot/instance-action"
_TOKEN_PATH = "/latest/api/token"


def create_server(address: str, port: int, notice: Path) -> ThreadingHTTPServer:
    """Create a server that reports the notice while the file `notice` exists."""
    token = secrets.token_hex(16)

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if self.path != _TOKEN_PATH:
                self._answer(404)
            elif not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
                self._answer(400)
            else:
                self._answer(200, token)

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") != token:
                self._answer(401)
            elif self.path == NOTICE_PATH and notice.exists():
                self._answer(200, notice.read_text())
            else:
                self._answer(404)

        def _answer(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Write no line per request."""

    return ThreadingHTTPServer((address, port), Handler)


def main() -> None:
    """Serve until the process is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="IP address to listen on")
    parser.add_argument("port", type=int)
    parser.add_argument("notice", type=Path, help="file with the notice, absent without one")
    options = parser.parse_args()
    create_server(options.address, options.port, options.notice).serve_forever()


if __name__ == "__main__":
    main()
