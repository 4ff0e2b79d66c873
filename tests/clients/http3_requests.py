"""Requests over HTTP/3 by the library `aioquic`, with the agent between it and servers of HTTP/1.1 and gRPC."""

import asyncio
import collections
import contextlib
import http.client
import http.server
import logging
import os
import socket
import ssl
import threading
import unittest

import aioquic.asyncio
import aioquic.h3.connection
import aioquic.h3.events
import aioquic.quic.configuration
import aioquic.quic.events

from gateway import AUTHORITY, ENVOY_GATEWAY, GATEWAY_API, HOST, Gateway, backend, document, route, rule
from grpc_calls import Server

LONG = 60
LARGE = 1024 * 1024

# The harness watches the loop, and warns of each step that starts a process.
logging.getLogger("asyncio").setLevel(logging.ERROR)


class Echo(http.server.BaseHTTPRequestHandler):
    """Gives back what it gets, at one path with a trailer behind it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """What was asked for."""
        self.answer(self.path.encode())

    def do_POST(self):
        """What was sent, with or without a length."""
        length = self.headers.get("content-length")
        if length is not None:
            return self.answer(self.rfile.read(int(length)))
        body = b""
        while (size := int(self.rfile.readline(), 16)) > 0:
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return self.answer(body)

    def answer(self, body):
        """In pieces, if there is something to say behind them."""
        self.send_response(200)
        self.send_header("x-forwarded-proto", self.headers["x-forwarded-proto"])
        if self.path != "/trailers":
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("transfer-encoding", "chunked")
        self.send_header("trailer", "x-sum")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n0\r\nx-sum: %d\r\n\r\n" % (len(body), body, sum(body)))

    def log_message(self, *_):
        """Nothing is told."""


class EchoServer(http.server.ThreadingHTTPServer):
    """A server that many may come to at once."""

    daemon_threads = True
    request_queue_size = 128


Answer = collections.namedtuple("Answer", ["status", "headers", "body", "trailers"])


class Client(aioquic.asyncio.QuicConnectionProtocol):
    """A connection of HTTP/3."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = aioquic.h3.connection.H3Connection(self._quic)
        self.heard, self.ended = collections.defaultdict(list), {}
        self.closed = asyncio.get_running_loop().create_future()

    def quic_event_received(self, event):
        """Takes what a stream brings, and tells who waits for its end."""
        if isinstance(event, aioquic.quic.events.ConnectionTerminated):
            self.closed.set_result(event.error_code)
        if isinstance(event, aioquic.quic.events.StreamReset) and event.stream_id in self.ended:
            self.ended[event.stream_id].set_exception(ConnectionResetError(event.error_code))
        for one in self.http.handle_event(event):
            self.heard[one.stream_id].append(one)
            if one.stream_ended:
                self.ended[one.stream_id].set_result(self.heard.pop(one.stream_id))

    async def ask(self, method, path, body=b"", authority=HOST, headers=()):
        """One request, to the end of its answer."""
        stream = self._quic.get_next_available_stream_id()
        self.ended[stream] = asyncio.get_running_loop().create_future()
        pseudo = {":method": method, ":scheme": "https", ":authority": authority, ":path": path}
        head = [(name.encode(), value.encode()) for name, value in [*pseudo.items(), *headers]]
        self.http.send_headers(stream, head, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        events = await asyncio.wait_for(self.ended[stream], LONG)
        heads = [dict(one.headers) for one in events if isinstance(one, aioquic.h3.events.HeadersReceived)]
        data = [one.data for one in events if isinstance(one, aioquic.h3.events.DataReceived)]
        trailers = heads[1] if len(heads) > 1 else {}
        return Answer(int(heads[0][b":status"]), heads[0], b"".join(data), trailers)


class OverHttp3(unittest.IsolatedAsyncioTestCase):
    """Servers, and the agent in front of them, for each test."""

    async def asyncSetUp(self):
        self.echo = EchoServer(("127.0.0.1", 0), Echo)
        threading.Thread(target=self.echo.serve_forever, daemon=True).start()
        self.addCleanup(self.echo.server_close)
        self.addCleanup(self.echo.shutdown)
        self.calls = Server("notes")
        self.addCleanup(self.calls.server.stop, None)
        target = {"group": GATEWAY_API, "kind": "Gateway", "name": "edge"}
        self.gateway = Gateway(
            backend("echo", self.echo.server_port),
            backend("calls", self.calls.port),
            route("HTTPRoute", "all", rule("calls", matches=[{"path": {"value": "/shop.v1.Notes"}}]), rule("echo")),
            document(ENVOY_GATEWAY, "v1alpha1", "ClientTrafficPolicy", "edge", {"targetRefs": [target], "http3": {}}),
        )
        self.addCleanup(self.gateway.close)

    @contextlib.asynccontextmanager
    async def client(self, name=HOST):
        """A connection for a server name."""
        configuration = aioquic.quic.configuration.QuicConfiguration(
            alpn_protocols=aioquic.h3.connection.H3_ALPN, server_name=name, cafile=str(AUTHORITY)
        )
        async with aioquic.asyncio.connect(
            "127.0.0.1", self.gateway.tls_port, configuration=configuration, create_protocol=Client
        ) as client:
            yield client

    async def test_requests_one_after_the_other(self):
        async with self.client() as client:
            for turn in range(30):
                answer = await client.ask("GET", f"/x/{turn}?y=z")
                self.assertEqual((answer.status, answer.body), (200, f"/x/{turn}?y=z".encode()))
                self.assertEqual(answer.headers[b"x-forwarded-proto"], b"https")
            self.assertEqual((await client.ask("GET", "/", authority="other.example")).status, 404)

    async def test_many_at_once(self):
        async with self.client() as client:
            answers = await asyncio.gather(*(client.ask("GET", f"/{turn}") for turn in range(80)))
            self.assertEqual([one.body for one in answers], [f"/{turn}".encode() for turn in range(80)])

    async def test_bodies_both_ways(self):
        body = os.urandom(LARGE)
        async with self.client() as client:
            for headers in ([], [("content-length", str(LARGE))]):
                answer = await client.ask("POST", "/", body, headers=headers)
                self.assertEqual(answer.status, 200)
                self.assertTrue(answer.body == body, len(answer.body))

    async def test_trailers(self):
        async with self.client() as client:
            answer = await client.ask("POST", "/trailers", b"abc", headers=[("te", "trailers")])
            self.assertEqual((answer.status, answer.body), (200, b"abc"))
            self.assertEqual(answer.trailers, {b"x-sum": str(sum(b"abc")).encode()})

    async def test_calls(self):
        headers = [("content-type", "application/grpc"), ("te", "trailers")]
        async with self.client() as client:
            message = b"\0" + (5).to_bytes(4, "big") + b"hello"
            answer = await client.ask("POST", "/shop.v1.Notes/Say", message, headers=headers)
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.body[5:], b"notes:hello")
            self.assertEqual(answer.trailers[b"grpc-status"], b"0")

    async def test_heads_that_are_too_large(self):
        async with self.client() as client:
            answer = await client.ask("GET", "/", headers=[("x-large", "x" * 61 * 1024)])
            self.assertEqual(answer.status, 431)
            self.assertEqual((await client.ask("GET", "/")).status, 200)

    async def test_the_other_versions_tell_of_it(self):
        def over_tcp():
            context = ssl.create_default_context(cafile=AUTHORITY)
            plain = socket.create_connection(("127.0.0.1", self.gateway.tls_port), LONG)
            connection = http.client.HTTPConnection(HOST)
            connection.sock = context.wrap_socket(plain, server_hostname=HOST)
            connection.request("GET", "/")
            answer = connection.getresponse()
            connection.close()
            return answer.getheader("alt-svc")

        told = await asyncio.to_thread(over_tcp)
        self.assertEqual(told, f'h3=":{self.gateway.tls_port}"; ma=86400')
