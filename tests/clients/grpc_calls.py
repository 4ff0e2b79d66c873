"""gRPC's own implementation in C, as Python has it, as client and as server, with the agent between them.

A class of tests is one way to the agent; messages are bytes as they are, so that nothing has to be generated.
"""

import concurrent.futures
import queue
import threading
import time
import unittest

import grpc

from gateway import AUTHORITY, HOST, Gateway, backend, free_port, policy, route, rule

# Nothing here takes so long: what ends a call otherwise is a failure.
LONG = 60
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
LARGE = 9 * 1024 * 1024
DETAILS = b"\x08\x07\x12\x06no \xc3\xbc\xff\x00"


class Server(grpc.GenericRpcHandler):
    """A server of gRPC with a name: what it does is the last part of the path, of whatever service."""

    def __init__(self, name):
        self.name = name
        self.healthy = True
        self.started, self.ended = threading.Event(), threading.Event()
        self.remaining = None
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(128), [self], options=OPTIONS)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def service(self, details):
        """What serves a path, or nothing: the library answers UNIMPLEMENTED then."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        return {
            "/grpc.health.v1.Health/Check": unary(self.check),
            "Say": unary(self.say),
            "Metadata": unary(self.metadata),
            "Deny": unary(self.deny),
            "Zip": unary(self.zip),
            "Wait": unary(self.wait),
            "Count": stream(self.count),
            "Endless": stream(self.endless),
            "Join": grpc.stream_unary_rpc_method_handler(self.join),
            "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
            "Enough": grpc.stream_stream_rpc_method_handler(self.enough),
        }.get(details.method if "Health" in details.method else details.method.rsplit("/")[-1])

    def check(self, _request, _context):
        """`HealthCheckResponse`: field 1 is SERVING (1) or NOT_SERVING (2)."""
        return b"\x08\x01" if self.healthy else b"\x08\x02"

    def say(self, request, _context):
        """Its name before what was said."""
        return self.name.encode() + b":" + request

    def metadata(self, _request, context):
        """What the client said goes back in the head and in the trailers, as text and as bytes."""
        seen = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-head", seen["x-text"]), ("x-head-bin", seen["x-bytes-bin"])))
        context.set_trailing_metadata((("x-end", seen["x-text"]), ("x-end-bin", seen["x-bytes-bin"])))
        return b""

    def deny(self, _request, context):
        """A status with a message beyond ASCII, its details, and a trailer of its own."""
        context.set_trailing_metadata((("grpc-status-details-bin", DETAILS), ("x-why", "because")))
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "für 100 % of you")

    def zip(self, request, context):
        """The same, compressed."""
        context.set_compression(grpc.Compression.Gzip)
        return request

    def wait(self, _request, context):
        """Says that it began, with how much time; and when it was told to end."""
        self.remaining = context.time_remaining()
        ended = threading.Event()
        if context.add_callback(ended.set):
            self.started.set()
            ended.wait()
        self.ended.set()
        return b""

    def count(self, request, _context):
        """Numbers below the one that is asked for."""
        return (b"%d" % number for number in range(int(request)))

    def endless(self, _request, context):
        """A message, and one more for each that the client's end is not known after."""
        ended = threading.Event()

        def end():
            # Here, for the library may not come back to what is behind the last message.
            ended.set()
            self.ended.set()

        if not context.add_callback(end):
            end()
        self.started.set()
        while not ended.wait(0.02):
            yield b"more"

    def join(self, requests, _context):
        """All of it at once."""
        return b" ".join(requests)

    def talk(self, requests, _context):
        """Each message turned around, as it comes."""
        return (request[::-1] for request in requests)

    def enough(self, requests, context):
        """Ends after the first message, whatever else the client has to say."""
        yield next(requests)
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


def calls(to, service, method=None, headers=(), **fields):
    """A rule of a `GRPCRoute`: the calls of a service of `shop.v1`, or of one of its methods, to a backend."""
    call = {"service": f"shop.v1.{service}", **({"method": method} if method else {})}
    return rule(to, matches=[{"method": call, "headers": list(headers)}], **fields)


class OverCleartext(unittest.TestCase):
    """HTTP/2 with prior knowledge."""

    @classmethod
    def setUpClass(cls):
        """Servers, and the agent in front of them, for all tests of the class."""
        cls.first, cls.second = Server("first"), Server("second")
        cls.probed = [Server("one"), Server("other")]
        cls.gateway = Gateway(
            backend("first", cls.first.port),
            backend("second", cls.second.port),
            backend("nobody", free_port()),
            backend("probed", *(server.port for server in cls.probed)),
            route(
                "GRPCRoute",
                "notes",
                calls("first", "Notes"),
                calls("second", "Notes", "Say"),
                # Who gets here was compressed on its way to the agent.
                calls("second", "Notes", "Zip", headers=[{"name": "grpc-encoding", "value": "gzip"}]),
                calls("nobody", "Notes", "Zip"),
                calls("nobody", "Gone"),
                calls("first", "Slow", name="slow"),
                calls("probed", "Probed", name="probed"),
            ),
            policy("slow", "GRPCRoute", "notes", "slow", timeout={"http": {"requestTimeout": "3s"}}),
            policy("probed", "GRPCRoute", "notes", "probed", healthCheck={"active": {
                "type": "GRPC", "interval": "100ms", "timeout": "60s", "unhealthyThreshold": 1, "grpc": {},
            }}),
        )

    @classmethod
    def tearDownClass(cls):
        """Ends the agent and the servers."""
        cls.gateway.close()
        for server in [cls.first, cls.second, *cls.probed]:
            server.server.stop(None)

    def connect(self):
        """A channel to the agent, for the gateway's host."""
        options = (*OPTIONS, ("grpc.default_authority", HOST))
        return grpc.insecure_channel(f"127.0.0.1:{self.gateway.port}", options)

    def setUp(self):
        self.channel = self.connect()
        self.addCleanup(self.channel.close)
        for server in (self.first, self.second):
            server.started.clear()
            server.ended.clear()

    def unary(self, path, message=b"", timeout=LONG, **options):
        """One message for another."""
        return self.channel.unary_unary(path)(message, timeout=timeout, **options)

    def refused(self, path, **options):
        """The error that a call ends with."""
        with self.assertRaises(grpc.RpcError) as refused:
            self.unary(path, **options)
        return refused.exception

    def test_unary(self):
        self.assertEqual(self.unary("/shop.v1.Notes/Say", b"hello"), b"second:hello")
        self.assertEqual(self.unary("/shop.v1.Notes/Say", b""), b"second:")

    def test_methods_of_one_service_have_backends_of_their_own(self):
        # By this route `Say` is the second one's, and everything else the first one's.
        self.unary("/shop.v1.Notes/Say")
        self.unary("/shop.v1.Notes/Metadata", metadata=(("x-text", "a"), ("x-bytes-bin", b"b")))
        waiting = self.channel.unary_unary("/shop.v1.Notes/Wait").future(b"", timeout=LONG)
        self.assertTrue(self.first.started.wait(LONG))
        waiting.cancel()
        self.assertTrue(self.first.ended.wait(LONG))
        self.assertFalse(self.second.started.is_set())

    def test_server_streaming(self):
        answers = self.channel.unary_stream("/shop.v1.Notes/Count")(b"1000", timeout=LONG)
        self.assertEqual(list(answers), [b"%d" % number for number in range(1000)])
        self.assertEqual(answers.code(), grpc.StatusCode.OK)
        nothing = self.channel.unary_stream("/shop.v1.Notes/Count")(b"0", timeout=LONG)
        self.assertEqual((list(nothing), nothing.code()), ([], grpc.StatusCode.OK))

    def test_client_streaming(self):
        words = [b"%d" % number for number in range(1000)]
        joined = self.channel.stream_unary("/shop.v1.Notes/Join")(iter(words), timeout=LONG)
        self.assertEqual(joined, b" ".join(words))
        self.assertEqual(self.channel.stream_unary("/shop.v1.Notes/Join")(iter([]), timeout=LONG), b"")

    def test_each_message_is_answered_before_the_next_is_sent(self):
        say = queue.Queue()
        answers = self.channel.stream_stream("/shop.v1.Notes/Talk")(iter(say.get, None), timeout=LONG)
        for number in range(50):
            word = b"word-%d" % number
            say.put(word)
            self.assertEqual(next(answers), word[::-1])
        say.put(None)
        self.assertRaises(StopIteration, next, answers)
        self.assertEqual(answers.code(), grpc.StatusCode.OK)

    def test_a_server_that_has_enough_ends_the_call_of_a_client_that_has_not(self):
        say = queue.Queue()
        self.addCleanup(say.put, None)
        answers = self.channel.stream_stream("/shop.v1.Notes/Enough")(iter(say.get, None), timeout=LONG)
        say.put(b"first")
        self.assertEqual(next(answers), b"first")
        with self.assertRaises(grpc.RpcError) as ended:
            next(answers)
        self.assertEqual(ended.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(ended.exception.details(), "enough")

    def test_metadata_in_both_directions(self):
        for value in (b"\x00\xff\x80", b"", b"x" * 3000):
            metadata = (("x-text", "a, b;c"), ("x-bytes-bin", value))
            _, call = self.channel.unary_unary("/shop.v1.Notes/Metadata").with_call(b"", LONG, metadata)
            head, trailers = dict(call.initial_metadata()), dict(call.trailing_metadata())
            self.assertEqual((head["x-head"], head["x-head-bin"]), ("a, b;c", value))
            self.assertEqual((trailers["x-end"], trailers["x-end-bin"]), ("a, b;c", value))

    def test_a_status_with_its_message_details_and_trailers(self):
        status = self.refused("/shop.v1.Notes/Deny")
        self.assertEqual(status.code(), grpc.StatusCode.PERMISSION_DENIED)
        self.assertEqual(status.details(), "für 100 % of you")
        trailers = dict(status.trailing_metadata())
        self.assertEqual(trailers["grpc-status-details-bin"], DETAILS)
        self.assertEqual(trailers["x-why"], "because")

    def test_the_clients_deadline_reaches_the_server(self):
        status = self.refused("/shop.v1.Notes/Wait", timeout=5)
        self.assertEqual(status.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertTrue(self.first.ended.wait(LONG))
        # `grpc-timeout` has eight digits at most, and who writes it rounds up: a little more than was asked for is
        # no mistake. Without the header a server knows no deadline at all.
        self.assertIsNotNone(self.first.remaining)
        self.assertTrue(0 < self.first.remaining < 6, self.first.remaining)

    def test_the_routes_time_limit(self):
        status = self.refused("/shop.v1.Slow/Wait")
        self.assertEqual(status.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertIn("upstream_timeout", status.details())
        self.assertTrue(self.first.ended.wait(LONG), "the server was told")

    def test_the_routes_time_limit_in_the_middle_of_an_answer(self):
        answers = self.channel.unary_stream("/shop.v1.Slow/Endless")(b"", timeout=LONG)
        self.assertEqual(next(answers), b"more")
        with self.assertRaises(grpc.RpcError) as ended:
            list(answers)
        self.assertEqual(ended.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertIn("upstream_timeout", ended.exception.details())
        self.assertTrue(self.first.ended.wait(LONG), "the server was told")

    def test_methods_that_nobody_has(self):
        by_server = self.refused("/shop.v1.Notes/Nothing")
        self.assertEqual((by_server.code(), by_server.details()), (grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
        by_router = self.refused("/shop.v1.Nothing/Say")
        self.assertEqual(by_router.code(), grpc.StatusCode.UNIMPLEMENTED)
        self.assertIn("no_route", by_router.details())

    def test_a_backend_that_is_not_there(self):
        status = self.refused("/shop.v1.Gone/Say")
        self.assertEqual(status.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("upstream_connect", status.details())

    def test_large_messages(self):
        large = bytes(range(256)) * (LARGE // 256)
        self.assertEqual(self.unary("/shop.v1.Notes/Say", large), b"second:" + large)
        answers = self.channel.stream_stream("/shop.v1.Notes/Talk")(iter([large, b"", large]), timeout=LONG)
        self.assertEqual(list(answers), [large[::-1], b"", large[::-1]])

    def test_compressed_messages(self):
        text = b"the same again " * 100_000
        gzip = grpc.Compression.Gzip
        self.assertEqual(self.unary("/shop.v1.Notes/Zip", text, compression=gzip), text)
        # Without compression this method leads to nobody: the one above was compressed.
        self.assertEqual(self.refused("/shop.v1.Notes/Zip").code(), grpc.StatusCode.UNAVAILABLE)

    def test_a_client_that_gives_up_is_told_to_the_server(self):
        waiting = self.channel.unary_unary("/shop.v1.Notes/Wait").future(b"", timeout=LONG)
        self.assertTrue(self.first.started.wait(LONG))
        self.assertFalse(self.first.ended.is_set())
        waiting.cancel()
        self.assertTrue(self.first.ended.wait(LONG), "a call")
        self.first.started.clear()
        self.first.ended.clear()
        answers = self.channel.unary_stream("/shop.v1.Notes/Endless")(b"", timeout=LONG)
        self.assertEqual(next(answers), b"more")
        self.assertFalse(self.first.ended.is_set())
        answers.cancel()
        self.assertTrue(self.first.ended.wait(LONG), "a stream")

    def test_many_calls_at_once_on_one_connection(self):
        say = self.channel.unary_unary("/shop.v1.Notes/Say")
        calls = [(number, say.future(b"%d" % number, timeout=LONG)) for number in range(500)]
        for number, call in calls:
            self.assertEqual(call.result(), b"second:%d" % number)

    def test_health_is_asked_by_grpc(self):
        one, other = self.probed
        for well, ill in ((one, other), (other, one)):
            well.healthy, ill.healthy = True, False
            in_a_row, end = 0, time.monotonic() + LONG
            while time.monotonic() < end:
                by = self.unary("/shop.v1.Probed/Say").split(b":")[0].decode()
                in_a_row = in_a_row + 1 if by == well.name else 0
                if in_a_row == 100:
                    break
            self.assertEqual(in_a_row, 100, f"{well.name} alone is healthy, and both are used")


class OverTls(OverCleartext):
    """HTTP/2 by ALPN: the library goes on with nothing else."""

    def connect(self):
        options = (*OPTIONS, ("grpc.ssl_target_name_override", HOST))
        credentials = grpc.ssl_channel_credentials(AUTHORITY.read_bytes())
        return grpc.secure_channel(f"127.0.0.1:{self.gateway.tls_port}", credentials, options)
