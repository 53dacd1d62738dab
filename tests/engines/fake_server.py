"""A server that behaves as told: `python fake_server.py PORT MODE`. Stands in where a real engine cannot be made to misbehave."""

from __future__ import annotations

import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, mode = int(sys.argv[1]), sys.argv[2]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"/health": "", "/facts": '{"max_num_seqs": 7}'}.get(self.path))

    def do_POST(self):
        self.answer("" if self.path == "/reset" and mode != "no-reset" else None)

    def answer(self, body):
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, *_):
        pass


if mode == "lingers":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "goes":
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(0)))
print("imports are done", flush=True)
if mode == "dies":
    sys.exit("ValueError: this cannot work")
if mode == "fatal":
    print("FATAL: the core is gone", flush=True)
    print("OutOfMemory: 3 GiB are missing", flush=True)
if mode in ("fatal", "hangs"):
    time.sleep(600)
time.sleep(0.3)
print("weights are loaded", flush=True)
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
