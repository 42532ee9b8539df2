#!/usr/bin/env python3
"""A payment service as companies have them: slow, and unwilling to take more than a few requests at a time.

    payment.py --port 9900 --at-most 4 --slow-ms 20

POST /charges  charges what the body says, once for each `idempotency-key`; 429 where more than --at-most are under way
GET /stats     what it saw: {"charged": .., "repeats": .., "refused": .., "now": .., "peak": ..}

A real service would keep what it charged on disk. This one forgets everything when it ends.
"""

import argparse
import http.server
import json
import threading
import time


class Service(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, options):
        super().__init__(("127.0.0.1", options.port), Request)
        self.options = options
        self.lock = threading.Lock()
        self.charged = set()
        self.repeats = self.refused = self.now = self.peak = 0

    def stats(self):
        with self.lock:
            peak, self.peak = self.peak, self.now
            return {"charged": len(self.charged), "repeats": self.repeats, "refused": self.refused,
                    "now": self.now, "peak": peak}


class Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/stats":
            self.answer(200, self.server.stats())
        else:
            self.answer(404, {"error": "there is only /stats"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("authorization") != f"Bearer {self.server.options.key}":
            return self.answer(401, {"error": "the key is not ours"})
        service, key = self.server, self.headers.get("idempotency-key", "")
        with service.lock:
            service.now += 1
            service.peak = max(service.peak, service.now)
            room = service.now <= service.options.at_most
            service.refused += not room
        try:
            if not room:
                return self.answer(429, {"error": "too many at a time"})
            time.sleep(service.options.slow_ms / 1000)
            with service.lock:
                service.repeats += key in service.charged
                service.charged.add(key)
        finally:
            # Before the answer: whoever hears it may send the next at once.
            with service.lock:
                service.now -= 1
        self.answer(200, {"charged": json.loads(body)["cents"]})

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9900)
    parser.add_argument("--at-most", type=int, default=4)
    parser.add_argument("--slow-ms", type=int, default=20)
    parser.add_argument("--key", default="demo-key", help="what callers must show")
    Service(parser.parse_args()).serve_forever()


if __name__ == "__main__":
    main()
