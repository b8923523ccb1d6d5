"""A web server on this machine with one file, for downloads that nobody disturbs but the trial."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from bad_server import Handler, Log


class Good(Handler):
    """Whatever is asked for, the file, as a good server answers."""

    def do_GET(self) -> None:
        self.log, self.close_connection = Log(), True
        self.good()


@contextmanager
def served() -> Iterator[str]:
    """The file's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Good)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/f.parquet"
    finally:
        server.shutdown()
        server.server_close()
