"""WebSockets by the library `websockets`, as client and as server, with the agent between them.

Clients over HTTP/2 are by the libraries `h2`, for the streams, and `wsproto`, for the frames in them.
"""

import asyncio
import collections
import logging
import os
import ssl
import unittest

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import websockets
import wsproto.connection
import wsproto.events

from gateway import AUTHORITY, HOST, Gateway, backend, free_port, route, rule

LONG = 60
ORIGIN = "https://notes.example"
LARGE = 20 * 1024 * 1024

# The harness watches the loop, and warns of each step that starts a process.
logging.getLogger("asyncio").setLevel(logging.ERROR)


def extensions(connection):
    """What was agreed on, by a name of the library: newer ones keep it elsewhere."""
    return [one.name for one in getattr(connection, "protocol", connection).extensions]


class Chats(unittest.IsolatedAsyncioTestCase):
    """A server, and the agent in front of it, for each test."""

    async def asyncSetUp(self):
        self.server = await websockets.serve(
            self.serve, "127.0.0.1", 0, subprotocols=["chat.v2", "chat.v1"], origins=[ORIGIN, None],
            max_size=None, ping_interval=None,
        )
        self.addAsyncCleanup(self.server.wait_closed)
        self.addCleanup(self.server.close)
        # The connection as the server has it, and how it ended.
        self.served, self.ended = asyncio.Queue(), asyncio.Queue()
        port = next(iter(self.server.sockets)).getsockname()[1]
        self.gateway = Gateway(
            backend("chat", port),
            backend("nobody", free_port()),
            route(
                "HTTPRoute",
                "chat",
                rule("chat", matches=[{"path": {"value": "/chat"}}]),
                rule("nobody", matches=[{"path": {"value": "/nobody"}}]),
            ),
        )
        self.addCleanup(self.gateway.close)

    async def serve(self, connection):
        """Gives back each message."""
        await self.served.put(connection)
        try:
            while True:
                await connection.send(await connection.recv())
        except websockets.ConnectionClosed as closed:
            await self.ended.put(closed)

    async def wait_for(self, waited):
        """What is waited for, within reason."""
        return await asyncio.wait_for(waited, LONG)


class OverCleartext(Chats):
    """By an upgrade of HTTP/1.1."""

    def connect(self, path="/chat", **options):
        """A connection to the agent, for the gateway's host."""
        options = {"max_size": None, "ping_interval": None, **options}
        return websockets.connect(f"ws://{HOST}{path}", host="127.0.0.1", port=self.gateway.port, **options)

    async def refused(self, **options):
        """The status that a handshake is answered with."""
        with self.assertRaises(websockets.InvalidHandshake) as refused:
            await self.connect(**options)
        refusal = refused.exception
        return getattr(refusal, "status_code", None) or refusal.response.status_code

    async def test_text_and_bytes(self):
        async with self.connect() as client:
            for message in ("hello", "für 100 € 🎉", "", b"\x00\xff\x80", b""):
                await client.send(message)
                self.assertEqual(await self.wait_for(client.recv()), message)

    async def test_each_side_speaks_when_it_wants_to(self):
        async with self.connect() as client:
            server = await self.wait_for(self.served.get())
            for number in range(100):
                await server.send(f"said {number}")
            for number in range(100):
                self.assertEqual(await self.wait_for(client.recv()), f"said {number}")

    async def test_the_subprotocol_is_the_servers_choice(self):
        for offered, chosen in ((["chat.v1"], "chat.v1"), (["chat.v9", "chat.v2"], "chat.v2"), (None, None)):
            async with self.connect(subprotocols=offered) as client:
                self.assertEqual(client.subprotocol, chosen)
                self.assertEqual((await self.wait_for(self.served.get())).subprotocol, chosen)

    async def test_pings_of_both_sides(self):
        async with self.connect() as client:
            server = await self.wait_for(self.served.get())
            await self.wait_for(await client.ping(b"are you there"))
            # Whoever reads answers.
            reading = asyncio.create_task(client.recv())
            await self.wait_for(await server.ping(b"and you"))
            await server.send("still here")
            self.assertEqual(await self.wait_for(reading), "still here")

    async def test_messages_in_fragments(self):
        async with self.connect() as client:
            await client.send(["one ", "", "two ", "three"])
            self.assertEqual(await self.wait_for(client.recv()), "one two three")
            await client.send([b"\x00" * 70_000, b"\x01" * 200])
            self.assertEqual(await self.wait_for(client.recv()), b"\x00" * 70_000 + b"\x01" * 200)

    async def test_large_messages(self):
        large = os.urandom(LARGE)
        for compression in ("deflate", None):
            async with self.connect(compression=compression) as client:
                await client.send(large)
                self.assertEqual(await self.wait_for(client.recv()), large)

    async def test_messages_are_compressed_if_both_want_to(self):
        for compression, agreed in (("deflate", ["permessage-deflate"]), (None, [])):
            async with self.connect(compression=compression) as client:
                server = await self.wait_for(self.served.get())
                self.assertEqual((extensions(client), extensions(server)), (agreed, agreed))
                for message in ("again " * 10_000, "again " * 10_000, "last"):
                    await client.send(message)
                    self.assertEqual(await self.wait_for(client.recv()), message)

    async def test_a_close_of_the_client_reaches_the_server(self):
        for code, reason in ((1000, ""), (1001, "going away"), (4321, "für immer")):
            client = await self.connect()
            await self.wait_for(client.close(code, reason))
            closed = await self.wait_for(self.ended.get())
            self.assertEqual((closed.rcvd.code, closed.rcvd.reason), (code, reason))
            self.assertEqual(client.close_code, code)

    async def test_a_close_of_the_server_reaches_the_client(self):
        for code, reason in ((1000, ""), (1011, "a mistake"), (4999, "für immer")):
            async with self.connect() as client:
                server = await self.wait_for(self.served.get())
                await self.wait_for(server.close(code, reason))
                with self.assertRaises(websockets.ConnectionClosed) as closed:
                    await self.wait_for(client.recv())
                received = closed.exception.rcvd
                self.assertEqual((received.code, received.reason), (code, reason))

    async def test_a_side_that_vanishes_is_missed_by_the_other(self):
        async with self.connect() as client:
            (await self.wait_for(self.served.get())).transport.abort()
            with self.assertRaises(websockets.ConnectionClosedError) as closed:
                await self.wait_for(client.recv())
            self.assertIsNone(closed.exception.rcvd)
        self.assertIsNone((await self.wait_for(self.ended.get())).rcvd)
        client = await self.connect()
        await self.wait_for(self.served.get())
        client.transport.abort()
        self.assertIsNone((await self.wait_for(self.ended.get())).rcvd)

    async def test_a_server_that_refuses_is_heard(self):
        async with self.connect(origin=ORIGIN) as client:
            await self.wait_for(client.ping())
        self.assertEqual(await self.refused(origin="https://elsewhere.example"), 403)

    async def test_what_the_router_refuses(self):
        self.assertEqual(await self.refused(path="/nowhere"), 404)
        self.assertEqual(await self.refused(path="/nobody"), 502)

    async def test_many_at_once(self):
        async def chat(number):
            async with self.connect() as client:
                for turn in range(20):
                    await client.send(f"{number}: {turn}")
                    self.assertEqual(await self.wait_for(client.recv()), f"{number}: {turn}")

        await asyncio.gather(*(chat(number) for number in range(50)))


class OverTls(OverCleartext):
    """The same by wss; a client of WebSockets offers no ALPN, or HTTP/1.1 in it."""

    alpn = None

    def connect(self, path="/chat", **options):
        context = ssl.create_default_context(cafile=AUTHORITY)
        if self.alpn:
            context.set_alpn_protocols(self.alpn)
        options = {"max_size": None, "ping_interval": None, "ssl": context, "server_hostname": HOST, **options}
        return websockets.connect(f"wss://{HOST}{path}", host="127.0.0.1", port=self.gateway.tls_port, **options)

    async def test_alpn_of_a_client_of_websockets(self):
        self.alpn = ["http/1.1"]
        async with self.connect() as client:
            self.assertEqual(client.transport.get_extra_info("ssl_object").selected_alpn_protocol(), "http/1.1")
            await client.send("by name")
            self.assertEqual(await self.wait_for(client.recv()), "by name")


class OverHttp2(Chats):
    """By an extended CONNECT (RFC 8441), several to a connection; the server knows HTTP/1.1 and nothing of it."""

    async def asyncSetUp(self):
        await super().asyncSetUp()
        context = ssl.create_default_context(cafile=AUTHORITY)
        context.set_alpn_protocols(["h2"])
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.gateway.tls_port, ssl=context, server_hostname=HOST
        )
        self.addCleanup(self.writer.close)
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.events = collections.deque()
        self.http2.initiate_connection()
        self.flush()
        settings = (await self.event(h2.events.RemoteSettingsChanged)).changed_settings
        offered = settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL]
        self.assertEqual(offered.new_value, 1)

    def flush(self):
        """What the library has to say goes out."""
        self.writer.write(self.http2.data_to_send())

    async def event(self, kind):
        """The next event of a kind; what comes before it is not waited for."""
        while True:
            while self.events:
                event = self.events.popleft()
                if isinstance(event, kind):
                    return event
            received = await self.wait_for(self.reader.read(65536))
            self.assertTrue(received, "the connection is open")
            self.events.extend(self.http2.receive_data(received))
            self.flush()

    async def open(self, path="/chat", headers=None):
        """A stream, and the head that its CONNECT is answered with."""
        stream = self.http2.get_next_available_stream_id()
        pseudo = {":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":authority": HOST, ":path": path}
        headers = {"sec-websocket-version": "13", **(headers or {})}
        self.http2.send_headers(stream, list((pseudo | headers).items()))
        self.flush()
        answer = await self.event(h2.events.ResponseReceived)
        self.assertEqual(answer.stream_id, stream)
        return stream, dict(answer.headers)

    def say(self, stream, frames, event):
        """Sends a frame on a stream."""
        self.http2.send_data(stream, frames.send(event))
        self.flush()

    async def heard(self, stream, frames):
        """The next event of a chat, of those on one connection."""
        while True:
            for event in frames.events():
                return event
            data = await self.event(h2.events.DataReceived)
            self.assertEqual(data.stream_id, stream)
            self.http2.acknowledge_received_data(data.flow_controlled_length, stream)
            frames.receive_data(data.data)

    async def end(self, stream):
        """Ends a stream once the server's connection ended."""
        self.assertEqual((await self.event(h2.events.StreamEnded)).stream_id, stream)
        self.http2.end_stream(stream)
        self.flush()

    async def test_chats_that_share_a_connection(self):
        chats = []
        for _ in range(5):
            stream, head = await self.open(headers={"sec-websocket-protocol": "chat.v1"})
            self.assertEqual((head[":status"], head["sec-websocket-protocol"]), ("200", "chat.v1"))
            chats.append((stream, wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)))
        for message in ("hello", "für 100 €", "x" * 10_000):
            for stream, frames in chats:
                self.say(stream, frames, wsproto.events.TextMessage(message))
                heard = ""
                while len(heard) < len(message):
                    heard += (await self.heard(stream, frames)).data
                self.assertEqual(heard, message)
        for stream, frames in chats:
            self.say(stream, frames, wsproto.events.Ping(b"there"))
            pong = await self.heard(stream, frames)
            self.assertEqual((type(pong), pong.payload), (wsproto.events.Pong, b"there"))

    async def test_closes_of_both_sides(self):
        close = wsproto.events.CloseConnection
        stream, _ = await self.open()
        frames = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
        self.say(stream, frames, close(4321, "enough"))
        answer = await self.heard(stream, frames)
        self.assertEqual((type(answer), answer.code), (close, 4321))
        await self.end(stream)
        closed = await self.wait_for(self.ended.get())
        self.assertEqual((closed.rcvd.code, closed.rcvd.reason), (4321, "enough"))

        await self.wait_for(self.served.get())
        stream, _ = await self.open()
        frames = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
        server = await self.wait_for(self.served.get())
        closing = asyncio.create_task(server.close(1011, "a mistake"))
        answer = await self.heard(stream, frames)
        self.assertEqual((type(answer), answer.code, answer.reason), (close, 1011, "a mistake"))
        self.say(stream, frames, answer.response())
        await self.end(stream)
        await self.wait_for(closing)

    async def test_a_stream_that_is_reset_is_missed_by_the_server(self):
        stream, _ = await self.open()
        await self.wait_for(self.served.get())
        self.http2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self.flush()
        self.assertIsNone((await self.wait_for(self.ended.get())).rcvd)

    async def test_refusals(self):
        for path, status in (("/nowhere", "404"), ("/nobody", "502")):
            self.assertEqual((await self.open(path))[1][":status"], status)
        elsewhere = {"origin": "https://elsewhere.example"}
        self.assertEqual((await self.open(headers=elsewhere))[1][":status"], "403")
