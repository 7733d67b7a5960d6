#!/usr/bin/env python3
"""The shop's worker: moves orders from Redis to PostgreSQL."""
import sys
import time
from socket import create_connection

import psycopg2


def next_order():
    """Waits for an order for at most one second."""
    with create_connection(("cache", 6379), timeout=3) as connection:
        connection.sendall(b"*3\r\n$5\r\nBRPOP\r\n$6\r\norders\r\n$1\r\n1\r\n")
        answer = connection.makefile("rb")
        if not answer.readline().startswith(b"*2"):
            return None
        key_and_item = [answer.read(int(answer.readline()[1:]) + 2)[:-2] for _ in range(2)]
        return key_and_item[1].decode()


def finish(item):
    with psycopg2.connect(host="db", user="postgres", connect_timeout=3) as connection:
        connection.cursor().execute("INSERT INTO orders (item) VALUES (%s)", (item,))


while True:
    try:
        if item := next_order():
            finish(item)
    except (OSError, psycopg2.Error) as error:
        print(error, file=sys.stderr, flush=True)
        time.sleep(0.5)
