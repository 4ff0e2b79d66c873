"""The agent as a process in front of servers of these tests: documents go in, addresses come out.

`CARDINAL_AGENT` names its program, `CARDINAL_SECRETS` a folder with a certificate for `HOST` (`gateway.pem`, `gateway.key`) and
the authority that signed it (`ca.pem`).
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time

HOST = "notes.example"
SECRETS = pathlib.Path(os.environ["CARDINAL_SECRETS"])
AUTHORITY = SECRETS / "ca.pem"

GATEWAY_API = "gateway.networking.k8s.io"
ENVOY_GATEWAY = "gateway.envoyproxy.io"


# Below those that the kernel gives to clients and to servers that do not care: nobody takes one meanwhile.
PORTS = iter(range(10_000 + os.getpid() % 900 * 10, 20_000))


def free_port():
    """A port of loopback that nobody has."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            return port
    raise OSError("no port of loopback is free")


def document(group, version, kind, name, spec):
    """A document with a specification."""
    return {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": name}, "spec": spec}


def backend(name, *ports):
    """Servers on loopback."""
    endpoints = [{"ip": {"address": "127.0.0.1", "port": port}} for port in ports]
    return document(ENVOY_GATEWAY, "v1alpha1", "Backend", name, {"endpoints": endpoints})


def rule(to, **fields):
    """A rule of a route to one backend."""
    return {"backendRefs": [{"group": ENVOY_GATEWAY, "kind": "Backend", "name": to}], **fields}


def route(kind, name, *rules):
    """A route of the gateway's host."""
    spec = {"parentRefs": [{"name": "edge"}], "hostnames": [HOST], "rules": list(rules)}
    return document(GATEWAY_API, "v1", kind, name, spec)


def policy(name, kind, route_name, rule_name, **fields):
    """A `BackendTrafficPolicy` of one rule."""
    target = {"group": GATEWAY_API, "kind": kind, "name": route_name, "sectionName": rule_name}
    return document(ENVOY_GATEWAY, "v1alpha1", "BackendTrafficPolicy", name, {"targetRefs": [target], **fields})


class Gateway:
    """A running agent with a listener in cleartext, `port`, and one of TLS, `tls_port`."""

    def __init__(self, *documents):
        self.folder = tempfile.TemporaryDirectory()
        self.port, self.tls_port = free_port(), free_port()
        folder = pathlib.Path(self.folder.name)
        (folder / "config").mkdir()
        for number, one in enumerate([*self._edge(), *documents]):
            (folder / "config" / f"{number}.json").write_text(json.dumps(one))
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.agent = subprocess.Popen(
                [os.environ["CARDINAL_AGENT"], "--datapath", "none", "--threads", "2"]
                + ["--config", folder / "config", "--state", folder / "state", "--admin", folder / "admin.sock"],
                stdout=log,
                stderr=log,
            )
        try:
            for port in (self.port, self.tls_port):
                self._wait_for(port)
        except BaseException:
            self.close()
            raise

    def _edge(self):
        certificate, key = ((SECRETS / name).read_text() for name in ("gateway.pem", "gateway.key"))
        yield {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "gateway"},
            "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": certificate, "tls.key": key},
        }
        tls = {"mode": "Terminate", "certificateRefs": [{"name": "gateway"}]}
        yield document(GATEWAY_API, "v1", "Gateway", "edge", {
            "gatewayClassName": "cardinal",
            "addresses": [{"value": "127.0.0.1"}],
            "listeners": [
                {"name": "http", "port": self.port, "protocol": "HTTP"},
                {"name": "https", "port": self.tls_port, "protocol": "HTTPS", "tls": tls},
            ],
        })

    def _wait_for(self, port):
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                if self.agent.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"the agent does not listen:\n{self.log.read_text()}") from None
                time.sleep(0.02)

    def close(self):
        """Ends the agent."""
        self.agent.kill()
        self.agent.wait()
        self.folder.cleanup()
