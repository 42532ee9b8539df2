#!/usr/bin/env python3
"""Places many orders at once, straight on a NATS server: what `trellis publish` does for one.

    orders.py --nats 127.0.0.1:4222 --count 10000

Returns when the server has all of them.
"""

import argparse
import json
import socket
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nats", default="127.0.0.1:4222", help="host:port")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=1, help="the number of the first order")
    parser.add_argument("--coupon", help="the coupon that each order has")
    parser.add_argument("--per-second", type=float, help="no faster than this")
    options = parser.parse_args()
    host, port = options.nats.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as server:
        lines = server.makefile("rb")
        lines.readline()  # INFO
        server.sendall(b'CONNECT {"verbose":false,"name":"orders.py"}\r\n')
        for number in range(options.first, options.first + options.count):
            order = {"number": number, "customer": "Ada", "cents": 100 + number % 900}
            if options.coupon:
                order["coupon"] = options.coupon
            body = json.dumps(order).encode()
            server.sendall(b"PUB orders %d\r\n%s\r\n" % (len(body), body))
            if options.per_second:
                time.sleep(1 / options.per_second)
        # The server answers what comes in its order, so this one comes when it has seen all.
        server.sendall(b"PING\r\n")
        while not lines.readline().startswith(b"PONG"):
            pass
    print(f"{options.count} orders are placed")


if __name__ == "__main__":
    main()
