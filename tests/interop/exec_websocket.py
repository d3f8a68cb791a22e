#!/usr/bin/env python3
"""Drives exec sessions over WebSocket with the pip package `websocket-client`, by what docs/exec.md says alone.

    exec_websocket.py --socket /run/agentd/agentd.sock --pod /app [case ...]
    exec_websocket.py --address 127.0.0.1:7777 --pod /app

Prints `ok <case>` for each case that holds and ends with 1 at the first that does not.
"""

import argparse
import hashlib
import http.client
import json
import socket
import struct
import sys
import threading
import time
import urllib.parse

import websocket

PATIENCE = 30
STDIN, STDOUT, STDERR = 0, 1, 2

# the most input that is on its way without having been acknowledged
WINDOW = 128 << 10


class Server:
    """Calls of the API, one connection for each."""

    def __init__(self, options):
        self.options = options

    def connect(self):
        if self.options.socket:
            stream = socket.socket(socket.AF_UNIX)
            stream.settimeout(PATIENCE)
            stream.connect(self.options.socket)
            return stream
        host, port = self.options.address.rsplit(":", 1)
        return socket.create_connection((host, int(port)), PATIENCE)

    @property
    def host(self):
        return "localhost" if self.options.socket else self.options.address

    def call(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.host)
        connection.sock = self.connect()
        headers = dict(headers or {})
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(body)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, dict(answer.getheaders()), json.loads(text) if text else None

    def begin(self, command, **more):
        """Begins a session and gives its path."""
        pod = urllib.parse.quote(self.options.pod.lstrip("/"), safe="")
        status, headers, body = self.call("POST", f"/v1/pods/{pod}/exec", {"command": command, **more})
        assert status == 201, (status, body)
        path = {name.lower(): value for name, value in headers.items()}["location"]
        assert path == "/v1/sessions/" + body["id"], (path, body)
        return path

    def attach(self, path, query=""):
        return Attached(self, path, query)


class Attached:
    """A WebSocket that is attached to a session."""

    def __init__(self, server, path, query):
        self.output = b""
        self.error = b""
        self.messages = []
        self.acknowledged = 0
        self.socket = websocket.create_connection(
            f"ws://{server.host}{path}/attach{query}", timeout=PATIENCE, socket=server.connect(),
            subprotocols=["exec.agentd.v1"], suppress_origin=True)
        assert self.socket.subprotocol == "exec.agentd.v1", self.socket.subprotocol
        hello = self.step()
        assert hello["type"] == "attached" and path.endswith(hello["session"]), hello
        self.begun = hello
        self.acknowledged = hello["stdin"]

    def step(self):
        """Takes one message; gives it where it is a control message, and None where it is output or the end."""
        code, data = self.socket.recv_data()
        if code == websocket.ABNF.OPCODE_TEXT:
            message = json.loads(data)
            if message["type"] == "ack":
                self.acknowledged = message["stdin"]
            self.messages.append(message)
            return message
        if code == websocket.ABNF.OPCODE_CLOSE:
            self.messages.append({"type": "closed", "code": struct.unpack("!H", data[:2])[0]})
            return None
        assert code == websocket.ABNF.OPCODE_BINARY, code
        assert data[0] in (STDOUT, STDERR), data[0]
        if data[0] == STDOUT:
            self.output += data[1:]
        else:
            self.error += data[1:]
        return None

    def until(self, holds):
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, (self.messages[-3:], self.output[-200:])
            assert not self.closed(), (self.messages[-3:], self.output[-200:])
            self.step()

    def told(self, kind):
        """Waits for a control message of a kind."""
        found = lambda: next((m for m in reversed(self.messages) if m["type"] == kind), None)
        self.until(lambda: found() is not None)
        return found()

    def closed(self):
        return bool(self.messages) and self.messages[-1]["type"] == "closed"

    def ended(self):
        """Reads to the end; gives the last message before the close frame."""
        deadline = time.monotonic() + PATIENCE
        while not self.closed():
            assert time.monotonic() < deadline, self.messages[-3:]
            self.step()
        assert self.messages[-1]["code"] == 1000, self.messages[-1]
        return self.messages[-2]

    def type(self, data):
        self.socket.send_binary(bytes([STDIN]) + data)

    def say(self, **message):
        self.socket.send(json.dumps(message))


def same(found, expected):
    assert found == expected, f"found {found!r}, expected {expected!r}"


# ---------------------------------------------------------------- cases


def streams_and_exit(server):
    path = server.begin(["sh", "-c", "cat; echo to stderr >&2; exit 7"], stdin=True)
    client = server.attach(path)
    same((client.begun["stdin"], client.begun["output"]), (0, 0))
    client.type(b"through ")
    client.type(b"cat")
    client.until(lambda: client.acknowledged == 11 and client.output == b"through cat")
    client.say(type="ping")
    client.told("pong")
    client.say(type="close-stdin")
    same(client.ended(), {"type": "exit", "exit": {"code": 7}})
    same((client.output, client.error), (b"through cat", b"to stderr\n"))


def an_empty_message_closes_the_input(server):
    client = server.attach(server.begin(["cat"], stdin=True))
    client.type(b"last words")
    client.type(b"")
    same(client.ended(), {"type": "exit", "exit": {"code": 0}})
    same(client.output, b"last words")


def a_terminal(server):
    script = "stty size; while read line; do echo \"got $line\"; stty size; done"
    path = server.begin(["sh", "-c", script], tty=True, rows=30, columns=100)
    client = server.attach(path)
    client.until(lambda: b"30 100\r\n" in client.output)
    client.say(type="resize", rows=41, columns=132)
    client.type("grün ✓\n".encode())
    client.until(lambda: "got grün ✓\r\n41 132\r\n".encode() in client.output)
    # Ctrl-C
    client.type(b"\x03")
    same(client.ended()["exit"], {"signal": 2})
    same(client.error, b"")


def much_both_ways(server):
    size = 8 << 20
    block = bytes((n * 7 + (n >> 8)) & 255 for n in range(65521))
    data = (block * (size // len(block) + 1))[:size]
    client = server.attach(server.begin(["cat"], stdin=True))
    failed = []

    def send():
        try:
            for at in range(0, size, 32 << 10):
                deadline = time.monotonic() + PATIENCE
                while at - client.acknowledged > WINDOW:
                    assert time.monotonic() < deadline, f"{at} sent, {client.acknowledged} acknowledged"
                    time.sleep(0.001)
                client.type(data[at:at + (32 << 10)])
            client.say(type="close-stdin")
        except Exception as error:
            failed.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    digest, received = hashlib.sha256(), 0
    while not client.closed():
        client.step()
        digest.update(client.output)
        received += len(client.output)
        client.output = b""
    sender.join()
    same(failed, [])
    same((received, client.acknowledged), (size, size))
    same(digest.hexdigest(), hashlib.sha256(data).hexdigest())
    same(client.messages[-2], {"type": "exit", "exit": {"code": 0}})


def lost_and_attached_again(server):
    path = server.begin(["sh", "-c", "while read line; do echo \"got $line\"; done; exit 3"], stdin=True)
    client = server.attach(path)
    client.type(b"one\ntwo\n")
    client.until(lambda: client.output == b"got one\ngot two\n")
    # a connection that breaks, without a word
    client.socket.sock.close()
    deadline = time.monotonic() + PATIENCE
    while server.call("GET", path)[2]["clients"] > 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    again = server.attach(path, "?from=8")
    same((again.begun["stdin"], again.begun["output"]), (8, 8))
    again.type(b"three\n")
    again.until(lambda: again.output == b"got two\ngot three\n")
    again.say(type="close-stdin")
    same(again.ended(), {"type": "exit", "exit": {"code": 3}})


def detached(server):
    path = server.begin(["sh", "-c", "echo before; read line; echo after; exec sleep 1000"], stdin=True)
    client = server.attach(path)
    client.until(lambda: client.output == b"before\n")
    client.type(b"go\n")
    client.say(type="detach")
    same(client.ended()["type"], "detached")
    again = server.attach(path, "?from=7&input=false")
    again.until(lambda: again.output == b"after\n")
    same(server.call("DELETE", path)[0], 204)
    last = again.ended()
    same((last["type"], last["exit"]), ("exit", {"signal": 9}))
    assert last["message"].startswith("ended by "), last


def one_gives_input(server):
    path = server.begin(["cat"], stdin=True)
    first = server.attach(path)
    try:
        server.attach(path)
        raise AssertionError("a second client was given the input")
    except websocket.WebSocketBadStatusException as error:
        same(error.status_code, 409)
    watcher = server.attach(path, "?input=false")
    second = server.attach(path, "?take-over=true")
    same(first.ended()["type"], "detached")
    second.type(b"mine")
    second.type(b"")
    for client in (second, watcher):
        same(client.ended(), {"type": "exit", "exit": {"code": 0}})
        same(client.output, b"mine")


def signals_and_errors(server):
    path = server.begin(["sh", "-c", "trap 'echo caught' USR1; echo ready; while :; do sleep 0.05; done"])
    client = server.attach(path)
    client.until(lambda: client.output == b"ready\n")
    client.say(type="signal", signal="USR1")
    client.until(lambda: client.output == b"ready\ncaught\n")
    client.say(type="signal", signal="NOPE")
    same(client.told("error")["problem"]["status"], 400)
    client.messages.clear()
    client.say(type="resize", rows=1, columns=1)
    same(client.told("error")["problem"]["status"], 409)
    client.messages.clear()
    client.type(b"no input was asked for")
    same(client.told("error")["problem"]["type"], "no-stdin")
    status, _, body = server.call("POST", path + "/signal", {"signal": 15})
    same((status, body), (204, None))
    same(client.ended(), {"type": "exit", "exit": {"signal": 15}})


def what_is_no_frame(server):
    path = server.begin(["sleep", "1000"], stdin=True)
    client = server.attach(path)
    client.socket.send_binary(b"\x09what")
    same(client.told("error")["problem"]["type"], "bad-frame")
    client.until(client.closed)
    same(client.messages[-1]["code"], 1003)
    # the session is none the worse
    same(server.call("GET", path)[2]["state"], "running")
    same(server.call("DELETE", path)[0], 204)
    status, _, session = server.call("GET", path + "/wait?timeout=30")
    same((status, session["state"], session["exit"]), (200, "exited", {"signal": 9}))


CASES = [
    streams_and_exit, an_empty_message_closes_the_input, a_terminal, much_both_ways, lost_and_attached_again, detached,
    one_gives_input, signals_and_errors, what_is_no_frame,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", help="the daemon's Unix socket")
    parser.add_argument("--address", help="host:port of a daemon that listens without TLS")
    parser.add_argument("--pod", required=True, help="id of a pod with one running container")
    parser.add_argument("cases", nargs="*", help="all by default: " + " ".join(case.__name__ for case in CASES))
    options = parser.parse_args()
    if not options.socket and not options.address:
        parser.error("give --socket or --address")
    for case in CASES:
        if not options.cases or case.__name__ in options.cases:
            case(Server(options))
            print("ok", case.__name__, flush=True)


if __name__ == "__main__":
    sys.exit(main())
