#!/usr/bin/env python3
"""A slow line: passes connections on to another port of this machine, and what
comes back at so many bytes a second in all. The number of those bytes is in a
file after every step.

usage: throttle.py PORT TO BYTES_PER_SECOND COUNT_FILE
"""

import os
import socket
import sys
import threading
import time

PORT, TO, RATE = (int(word) for word in sys.argv[1:4])
COUNT_FILE = sys.argv[4]
# A tenth of a second's worth, so that what comes is steady.
STEP = max(RATE // 10, 1)

lock = threading.Lock()
passed = 0
free_at = time.monotonic()


def account(count):
    """Counts bytes, and waits until the line would have carried them."""
    global passed, free_at
    with lock:
        passed += count
        free_at = max(free_at, time.monotonic()) + count / RATE
        until = free_at
        with open(COUNT_FILE + ".new", "w") as file:
            file.write(str(passed))
        os.replace(COUNT_FILE + ".new", COUNT_FILE)
    time.sleep(max(until - time.monotonic(), 0))


def copy(source, target, is_slow):
    try:
        while data := source.recv(STEP if is_slow else 65536):
            if is_slow:
                account(len(data))
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One of the two is gone, and so are both.
        source.close()
        target.close()


def serve(client):
    server = socket.create_connection(("127.0.0.1", TO))
    threading.Thread(target=copy, args=(client, server, False), daemon=True).start()
    copy(server, client, True)


with socket.create_server(("127.0.0.1", PORT), backlog=64) as listener:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()
