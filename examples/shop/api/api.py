#!/usr/bin/env python3
"""The shop's API: takes orders into Redis, reads finished ones from PostgreSQL."""
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_connection

import psycopg2


def redis(*words):
    """One command over a connection of its own; returns the first line of the answer."""
    with create_connection(("cache", 6379), timeout=3) as connection:
        request = f"*{len(words)}\r\n" + "".join(f"${len(w.encode())}\r\n{w}\r\n" for w in words)
        connection.sendall(request.encode())
        return connection.makefile("rb").readline().decode().strip()


def orders():
    with psycopg2.connect(host="db", user="postgres", connect_timeout=3) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT item FROM orders ORDER BY id")
        return [item for (item,) in cursor.fetchall()]


class Api(BaseHTTPRequestHandler):
    def answer(self, status, body):
        body = (json.dumps(body) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        try:
            self.answer(200, orders()) if self.path == "/orders" else self.answer(200, "api")
        except (OSError, psycopg2.Error) as error:
            self.answer(503, f"db: {error}")

    def do_POST(self):
        item = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        try:
            redis("LPUSH", "orders", item)
            self.answer(202, item)
        except OSError as error:
            self.answer(503, f"cache: {error}")

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("", 8000), Api).serve_forever()
