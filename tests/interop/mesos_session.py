#!/usr/bin/env python3
"""Drives nested containers of a Mesos v1 agent, in JSON or in protobuf. Standard library only.

    mesos_session.py --socket /run/agentd/agentd.sock --instance ID [--container NAME] --format json
    mesos_session.py --address 127.0.0.1:5051 --instance ID --format protobuf

Written from the facts of the protocol alone; shares no code with the server. Prints `ok <case>` for each case that holds
and ends with 1 at the first that does not.
"""

import argparse
import base64
import json
import os
import socket
import struct
import sys
import threading
import time
import uuid

PATIENCE = 30

# ---------------------------------------------------------------- messages

ENUMS = {
    "Call.Type": {
        "GET_HEALTH": 1, "GET_FLAGS": 2, "GET_VERSION": 3, "GET_METRICS": 4, "LIST_FILES": 7, "READ_FILE": 8,
        "GET_STATE": 9, "GET_CONTAINERS": 10, "LAUNCH_NESTED_CONTAINER": 14, "WAIT_NESTED_CONTAINER": 15,
        "KILL_NESTED_CONTAINER": 16, "LAUNCH_NESTED_CONTAINER_SESSION": 17, "ATTACH_CONTAINER_INPUT": 18,
        "ATTACH_CONTAINER_OUTPUT": 19, "REMOVE_NESTED_CONTAINER": 21, "WAIT_CONTAINER": 23, "PRUNE_IMAGES": 30,
    },
    "Response.Type": {
        "GET_HEALTH": 1, "GET_FLAGS": 2, "GET_VERSION": 3, "GET_METRICS": 4, "LIST_FILES": 6, "READ_FILE": 7,
        "GET_STATE": 8, "GET_CONTAINERS": 9, "WAIT_NESTED_CONTAINER": 13, "WAIT_CONTAINER": 15,
    },
    "Input.Type": {"CONTAINER_ID": 1, "PROCESS_IO": 2},
    "IO.Type": {"DATA": 1, "CONTROL": 2},
    "Data.Type": {"STDIN": 1, "STDOUT": 2, "STDERR": 3},
    "Control.Type": {"TTY_INFO": 1, "HEARTBEAT": 2},
    "Container.Type": {"DOCKER": 1, "MESOS": 2},
    "TaskState": {
        "TASK_STARTING": 0, "TASK_RUNNING": 1, "TASK_FINISHED": 2, "TASK_FAILED": 3, "TASK_KILLED": 4, "TASK_LOST": 5,
        "TASK_STAGING": 6, "TASK_ERROR": 7, "TASK_KILLING": 8,
    },
}

# message: field: (number, type); `*` before a type stands for a list
MESSAGES = {
    "ContainerID": {"value": (1, "string"), "parent": (2, "ContainerID")},
    "Id": {"value": (1, "string")},
    "Time": {"nanoseconds": (1, "int")},
    "Variable": {"name": (1, "string"), "value": (2, "string")},
    "Environment": {"variables": (1, "*Variable")},
    "Command": {
        "environment": (2, "Environment"), "value": (3, "string"), "user": (5, "string"), "shell": (6, "bool"),
        "arguments": (7, "*string"),
    },
    "Window": {"rows": (1, "int"), "columns": (2, "int")},
    "TTY": {"window_size": (1, "Window")},
    "Container": {"type": (1, "Container.Type"), "tty_info": (10, "TTY")},
    "Launch": {"container_id": (1, "ContainerID"), "command": (2, "Command"), "container": (3, "Container")},
    "Of": {"container_id": (1, "ContainerID"), "signal": (2, "int")},
    "Heartbeat": {"interval": (1, "Time")},
    "Control": {"type": (1, "Control.Type"), "tty_info": (2, "TTY"), "heartbeat": (3, "Heartbeat")},
    "Data": {"type": (1, "Data.Type"), "data": (2, "bytes")},
    "IO": {"type": (1, "IO.Type"), "data": (2, "Data"), "control": (3, "Control")},
    "Input": {"type": (1, "Input.Type"), "container_id": (2, "ContainerID"), "process_io": (3, "IO")},
    "ListFilesCall": {"path": (1, "string")},
    "ReadFileCall": {"path": (1, "string"), "offset": (2, "int"), "length": (3, "int")},
    "GetContainersCall": {"show_nested": (1, "bool")},
    "Call": {
        "type": (1, "Call.Type"), "list_files": (4, "ListFilesCall"), "read_file": (5, "ReadFileCall"),
        "launch_nested_container": (6, "Launch"), "wait_nested_container": (7, "Of"),
        "kill_nested_container": (8, "Of"), "launch_nested_container_session": (9, "Launch"),
        "attach_container_input": (10, "Input"), "attach_container_output": (11, "Of"),
        "remove_nested_container": (12, "Of"), "wait_container": (14, "Of"), "get_containers": (20, "GetContainersCall"),
    },
    "Health": {"healthy": (1, "bool")},
    "Flag": {"name": (1, "string"), "value": (2, "string")},
    "Flags": {"flags": (1, "*Flag")},
    "VersionInfo": {"version": (1, "string")},
    "Version": {"version_info": (1, "VersionInfo")},
    "Metric": {"name": (1, "string"), "value": (2, "double")},
    "Metrics": {"metrics": (1, "*Metric")},
    "FileInfo": {"path": (1, "string"), "nlink": (2, "int"), "size": (3, "int"), "mode": (5, "int")},
    "ListFiles": {"file_infos": (1, "*FileInfo")},
    "ReadFile": {"size": (1, "int"), "data": (2, "bytes")},
    "Wait": {"exit_status": (1, "int"), "state": (2, "TaskState"), "message": (5, "string")},
    "ContainerStatus": {"executor_pid": (3, "int"), "container_id": (4, "ContainerID")},
    "Status": {"task_id": (1, "Id"), "state": (2, "TaskState"), "container_status": (13, "ContainerStatus")},
    "Task": {
        "name": (1, "string"), "task_id": (2, "Id"), "framework_id": (3, "Id"), "executor_id": (4, "Id"),
        "agent_id": (5, "Id"), "state": (6, "TaskState"), "statuses": (8, "*Status"),
    },
    "Tasks": {"launched_tasks": (3, "*Task"), "completed_tasks": (5, "*Task")},
    "State": {"get_tasks": (1, "Tasks")},
    "ContainerEntry": {"executor_id": (2, "Id"), "executor_name": (3, "string"), "container_id": (4, "ContainerID")},
    "Containers": {"containers": (1, "*ContainerEntry")},
    "Response": {
        "type": (1, "Response.Type"), "get_health": (2, "Health"), "get_flags": (3, "Flags"),
        "get_version": (4, "Version"), "get_metrics": (5, "Metrics"), "list_files": (7, "ListFiles"),
        "read_file": (8, "ReadFile"), "get_state": (9, "State"), "get_containers": (10, "Containers"),
        "wait_nested_container": (14, "Wait"), "wait_container": (16, "Wait"),
    },
}


class Json:
    media = "application/json"

    @staticmethod
    def encode(message, value):
        def plain(kind, value):
            kind = kind.lstrip("*")
            if isinstance(value, list):
                return [plain(kind, item) for item in value]
            if isinstance(value, dict):
                return {name: plain(MESSAGES[kind][name][1], item) for name, item in value.items()}
            return base64.b64encode(value).decode() if kind == "bytes" else value

        return json.dumps(plain(message, value)).encode()

    @staticmethod
    def decode(message, text):
        assert text.isascii() and b"\n" not in text, text

        def read(kind, value):
            kind = kind.lstrip("*")
            if isinstance(value, list):
                return [read(kind, item) for item in value]
            if isinstance(value, dict):
                fields = MESSAGES.get(kind, {})
                return {name: read(fields[name][1], item) for name, item in value.items() if name in fields}
            if kind == "int":
                assert isinstance(value, int), (kind, value)
            return base64.b64decode(value, validate=True) if kind == "bytes" else value

        return read(message, json.loads(text))


class Protobuf:
    media = "application/x-protobuf"

    @staticmethod
    def varint(number):
        number &= (1 << 64) - 1
        out = bytearray()
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
        return bytes(out)

    @classmethod
    def encode(cls, message, value):
        out = bytearray()
        for name, items in value.items():
            number, kind = MESSAGES[message][name]
            for item in items if kind.startswith("*") else [items]:
                plain = kind.lstrip("*")
                if plain in ENUMS:
                    item, plain = ENUMS[plain][item], "int"
                if plain in ("int", "bool"):
                    out += cls.varint(number << 3) + cls.varint(int(item))
                    continue
                if plain in MESSAGES:
                    item = cls.encode(plain, item)
                elif plain == "string":
                    item = item.encode()
                out += cls.varint(number << 3 | 2) + cls.varint(len(item)) + item
        return bytes(out)

    @classmethod
    def decode(cls, message, data):
        fields = {number: (name, kind) for name, (number, kind) in MESSAGES[message].items()}
        out, at = {}, 0

        def varint():
            nonlocal at
            number = shift = 0
            while True:
                byte = data[at]
                at += 1
                number |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return number

        while at < len(data):
            tag = varint()
            name, kind = fields.get(tag >> 3, (None, ""))
            plain = kind.lstrip("*")
            if tag & 7 == 0:
                item = varint()
                item = item - (1 << 64) if item >> 63 else item
                if plain in ENUMS:
                    item = next(word for word, number in ENUMS[plain].items() if number == item)
                elif plain == "bool":
                    item = bool(item)
            elif tag & 7 == 1:
                item = struct.unpack("<d", data[at:at + 8])[0]
                at += 8
            elif tag & 7 == 2:
                length = varint()
                item = bytes(data[at:at + length])
                assert len(item) == length, "a field is cut short"
                at += length
                if plain in MESSAGES:
                    item = cls.decode(plain, item)
                elif plain == "string":
                    item = item.decode()
            else:
                raise AssertionError(f"wire type {tag & 7}")
            if name is None:
                continue
            if kind.startswith("*"):
                out.setdefault(name, []).append(item)
            else:
                out[name] = item
        return out


# ---------------------------------------------------------------- HTTP

class Closed(Exception):
    """The server closed the connection."""


class Connection:
    """One HTTP/1.1 exchange on a connection of its own."""

    def __init__(self, where, path="/api/v1", method="POST", headers=()):
        if isinstance(where, str):
            self.socket = socket.socket(socket.AF_UNIX)
        else:
            self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        self.socket.connect(where)
        self.buffer = b""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"] + [f"{name}: {value}" for name, value in headers]
        self.head = "\r\n".join(lines)

    def send(self, body=b""):
        """The whole request."""
        self.socket.sendall(f"{self.head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return self

    def begin(self):
        """A request whose body comes in chunks."""
        self.socket.sendall(f"{self.head}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        return self

    def chunk(self, data):
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self):
        self.socket.sendall(b"0\r\n\r\n")

    def close(self):
        self.socket.close()

    def _fill(self):
        data = self.socket.recv(1 << 16)
        if not data:
            raise Closed
        self.buffer += data

    def _line(self):
        while b"\r\n" not in self.buffer:
            self._fill()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode()

    def _take(self, count):
        while len(self.buffer) < count:
            self._fill()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def answer(self):
        """Status and headers."""
        status = int(self._line().split(" ")[1])
        self.headers = {}
        while line := self._line():
            name, value = line.split(":", 1)
            self.headers[name.lower()] = value.strip()
        return status

    def chunks(self):
        """The chunks of the answer's body."""
        assert self.headers.get("transfer-encoding") == "chunked", self.headers
        while size := int(self._line().split(";")[0], 16):
            yield self._take(size)
            assert self._take(2) == b"\r\n"
        assert self._line() == ""

    def body(self):
        if "content-length" in self.headers:
            return self._take(int(self.headers["content-length"]))
        return b"".join(self.chunks())


def record(payload):
    return str(len(payload)).encode() + b"\n" + payload


# ---------------------------------------------------------------- the agent

class Agent:
    def __init__(self, where, form):
        self.where, self.form = where, form

    def call(self, value, status=200):
        """A call that is answered at once; gives the answer's message."""
        headers = [("Content-Type", self.form.media), ("Accept", self.form.media)]
        connection = Connection(self.where, headers=headers).send(self.form.encode("Call", value))
        found = connection.answer()
        body = connection.body()
        connection.close()
        assert found == status, f"{value['type']}: {found} {body[:300]}, expected {status}"
        if status != 200:
            return body.decode()
        return self.form.decode("Response", body) if body else None

    def stream(self, value):
        """A call that is answered by a stream of records."""
        headers = [
            ("Content-Type", self.form.media), ("Accept", "application/recordio"), ("Message-Accept", self.form.media),
            ("Connection", "keep-alive"),
        ]
        connection = Connection(self.where, headers=headers).send(self.form.encode("Call", value))
        status = connection.answer()
        assert status == 200, f"{value['type']}: {status} {connection.body()[:300]}"
        assert connection.headers["content-type"] == "application/recordio", connection.headers
        return connection

    def records(self, connection):
        """The messages of a stream; each must have a chunk of its own."""
        for chunk in connection.chunks():
            length, payload = chunk.split(b"\n", 1)
            assert int(length) == len(payload), f"a chunk of {len(chunk)} bytes is not one record: {chunk[:60]}"
            yield self.form.decode("IO", payload)

    def input(self, container):
        """An input that is open, its first record sent."""
        headers = [
            ("Content-Type", "application/recordio"), ("Message-Content-Type", self.form.media),
            ("Accept", "application/json"),
        ]
        connection = Connection(self.where, headers=headers).begin()
        self.give(connection, {"type": "CONTAINER_ID", "container_id": container})
        return connection

    def give(self, connection, value):
        call = {"type": "ATTACH_CONTAINER_INPUT", "attach_container_input": value}
        connection.chunk(record(self.form.encode("Call", call)))

    def stdin(self, connection, data):
        io = {"type": "DATA", "data": {"type": "STDIN", "data": data}}
        self.give(connection, {"type": "PROCESS_IO", "process_io": io})

    def resize(self, connection, rows, columns):
        size = {"window_size": {"rows": rows, "columns": columns}}
        io = {"type": "CONTROL", "control": {"type": "TTY_INFO", "tty_info": size}}
        self.give(connection, {"type": "PROCESS_IO", "process_io": io})

    def heartbeat(self, connection):
        control = {"type": "HEARTBEAT", "heartbeat": {"interval": {"nanoseconds": 30 * 10**9}}}
        self.give(connection, {"type": "PROCESS_IO", "process_io": {"type": "CONTROL", "control": control}})

    def probe(self, container):
        """What clients send first, to see whether they may attach."""
        began = time.monotonic()
        connection = self.input(container)
        connection.end()
        status = connection.answer()
        connection.close()
        assert 200 <= status < 300, f"the probe was answered {status}"
        assert time.monotonic() - began < 5, "the probe took 5 s"

    def wait(self, container):
        answer = self.call({"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": {"container_id": container}})
        assert answer["type"] == "WAIT_NESTED_CONTAINER", answer
        return answer["wait_nested_container"]


class Session:
    """A nested session whose output is read on a thread."""

    def __init__(self, agent, parent, command, tty=None):
        self.agent = agent
        self.container = {"value": str(uuid.uuid4()), "parent": parent}
        launch = {"container_id": self.container, "command": command}
        if tty is not None:
            launch["container"] = {"type": "MESOS", "tty_info": tty}
        call = {"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": launch}
        self.connection = agent.stream(call)
        self.out, self.err, self.fault, self.ended = b"", b"", None, False
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        try:
            for io in self.agent.records(self.connection):
                with self.changed:
                    if io["type"] == "DATA":
                        assert io["data"]["data"], "a record without data"
                        if io["data"]["type"] == "STDOUT":
                            self.out += io["data"]["data"]
                        else:
                            assert io["data"]["type"] == "STDERR", io
                            self.err += io["data"]["data"]
                    self.changed.notify_all()
        except Exception as error:  # told by the thread that waits
            self.fault = error
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def until(self, what, holds):
        with self.changed:
            assert self.changed.wait_for(holds, PATIENCE), f"{what}: {self.out[-300:]} {self.err[-300:]}"

    def finish(self):
        self.until("the stream ends", lambda: self.ended)
        assert self.fault is None, f"the stream broke: {self.fault!r}"


def shell(line):
    return {"value": line, "shell": True}


def without_tty(agent, parent):
    line = "read line; echo got $line; echo problem >&2; cat; exit 7"
    session = Session(agent, parent, shell(line))
    agent.probe(session.container)
    agent.probe(session.container)
    put = agent.input(session.container)
    agent.stdin(put, b"hello\n")
    session.until("the line comes back", lambda: session.out == b"got hello\n")
    second = agent.input(session.container)
    assert second.answer() == 409, "a second input"
    second.close()
    agent.heartbeat(put)
    agent.stdin(put, b"more \xff\x00 bytes")
    agent.stdin(put, b"")
    session.finish()
    assert session.out == b"got hello\nmore \xff\x00 bytes", session.out
    assert session.err == b"problem\n", session.err
    put.end()
    assert 200 <= put.answer() < 300, "the input is answered"
    end = agent.wait(session.container)
    assert os.waitstatus_to_exitcode(end["exit_status"]) == 7, end
    remove = {"type": "REMOVE_NESTED_CONTAINER", "remove_nested_container": {"container_id": session.container}}
    agent.call(remove)
    wait = {"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": {"container_id": session.container}}
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            agent.call(wait, status=404)
            break
        except AssertionError:
            assert time.monotonic() < deadline, "a removed container is still told of"
            time.sleep(0.05)


def input_is_answered_at_the_end(agent, parent):
    session = Session(agent, parent, {"value": "head", "arguments": ["head", "-n1"], "shell": False})
    put = agent.input(session.container)
    agent.stdin(put, b"only this\n")
    session.finish()
    assert session.out == b"only this\n", session.out
    # nobody ends the input: the answer comes because the program has ended
    assert 200 <= put.answer() < 300, "the input is answered once the program has ended"
    put.close()
    agent.probe(session.container)
    assert agent.wait(session.container)["exit_status"] == 0


def with_tty(agent, parent):
    line = "test -t 0 && test -t 1 && echo terminal; read a; stty size; read b; stty size; kill -9 $$"
    session = Session(agent, parent, shell(line), tty={"window_size": {"rows": 11, "columns": 22}})
    session.until("it has a terminal", lambda: b"terminal\r\n" in session.out)
    agent.probe(session.container)
    put = agent.input(session.container)
    # no end of file with a terminal
    agent.stdin(put, b"")
    agent.stdin(put, b"\n")
    session.until("the first size", lambda: b"11 22\r\n" in session.out)
    agent.resize(put, 40, 100)
    agent.stdin(put, b"\n")
    session.until("the second size", lambda: b"40 100\r\n" in session.out)
    session.finish()
    assert session.err == b"", session.err
    assert 200 <= put.answer() < 300
    end = agent.wait(session.container)
    assert os.WIFSIGNALED(end["exit_status"]) and os.WTERMSIG(end["exit_status"]) == 9, end
    keys = Session(agent, parent, {"value": "sleep", "arguments": ["sleep", "1000"], "shell": False}, tty={})
    put = agent.input(keys.container)
    # the interrupt key
    agent.stdin(put, b"\x03")
    keys.finish()
    assert os.WTERMSIG(agent.wait(keys.container)["exit_status"]) == 2


def much(agent, parent):
    data = os.urandom(1 << 18) * 12
    session = Session(agent, parent, {"value": "cat", "shell": False})
    put = agent.input(session.container)
    for at in range(0, len(data), 100_000):
        agent.stdin(put, data[at:at + 100_000])
    agent.stdin(put, b"")
    put.end()
    assert put.answer() == 200
    session.finish()
    assert session.out == data, f"{len(session.out)} of {len(data)} bytes came back, or others"


def disconnect_destroys(agent, parent):
    mark = f"9{uuid.uuid4().int % 10**8:08}"
    session = Session(agent, parent, shell(f"trap '' HUP TERM; echo begun; sleep {mark} & sleep {mark}"))
    session.until("it has begun", lambda: b"begun\n" in session.out)
    session.connection.socket.shutdown(socket.SHUT_RDWR)
    session.connection.close()
    began = time.monotonic()
    end = agent.wait(session.container)
    assert os.WTERMSIG(end["exit_status"]) == 9 and end["state"] == "TASK_KILLED", end
    assert time.monotonic() - began < 10, "it took 10 s"


def without_session(agent, parent):
    container = {"value": str(uuid.uuid4()), "parent": parent}
    line = "trap 'echo ending; exit 5' TERM; echo begun; while true; do sleep 0.05; done"
    launch = {"container_id": container, "command": shell(line)}
    call = {"type": "LAUNCH_NESTED_CONTAINER", "launch_nested_container": launch}
    agent.call(call)
    # once more is no fault
    agent.call(call, status=202)
    of = {"container_id": container}
    attach = {"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": of}
    outputs = [agent.records(agent.stream(attach)) for _ in range(2)]

    def next_data(records):
        return next(io["data"]["data"] for io in records if io["type"] == "DATA")

    for records in outputs:
        assert next_data(records) == b"begun\n"
    remove = {"type": "REMOVE_NESTED_CONTAINER", "remove_nested_container": of}
    agent.call(remove, status=409)
    shown = agent.call({"type": "GET_CONTAINERS", "get_containers": {"show_nested": True}})
    values = [entry["container_id"]["value"] for entry in shown["get_containers"]["containers"]]
    assert container["value"] in values, values
    agent.call({"type": "KILL_NESTED_CONTAINER", "kill_nested_container": {**of, "signal": 15}})
    for records in outputs:
        assert next_data(records) == b"ending\n"
        assert [io for io in records if io["type"] == "DATA"] == [], "the stream ends"
    assert os.waitstatus_to_exitcode(agent.wait(container)["exit_status"]) == 5
    again = {"type": "WAIT_CONTAINER", "wait_container": of}
    assert agent.call(again)["wait_container"]["exit_status"] == 5 << 8
    agent.call(remove)


def told(agent, parent):
    assert agent.call({"type": "GET_HEALTH"})["get_health"]["healthy"] is True
    version = agent.call({"type": "GET_VERSION"})["get_version"]["version_info"]["version"]
    assert all(part.isdigit() for part in version.split(".")) and version.count(".") == 2, version
    flags = agent.call({"type": "GET_FLAGS"})["get_flags"]["flags"]
    assert any(flag["name"] == "work_dir" for flag in flags), flags
    metrics = agent.call({"type": "GET_METRICS"})["get_metrics"]["metrics"]
    figures = {metric["name"]: metric["value"] for metric in metrics}
    assert figures["slave/tasks_running"] >= 1 and figures["slave/cpus_total"] > 0, figures
    instance = parent["parent"]["value"] if "parent" in parent else parent["value"]
    tasks = agent.call({"type": "GET_STATE"})["get_state"]["get_tasks"]["launched_tasks"]
    task = next(task for task in tasks if task["executor_id"]["value"] == instance)
    container = task["statuses"][-1]["container_status"]["container_id"]
    assert container["parent"]["value"] == instance and task["state"] == "TASK_RUNNING", task
    containers = agent.call({"type": "GET_CONTAINERS"})["get_containers"]["containers"]
    assert any(entry["container_id"] == {"value": instance} for entry in containers), containers
    folder = f"/{instance}/tasks/{task['task_id']['value']}"
    files = agent.call({"type": "LIST_FILES", "list_files": {"path": folder}})["list_files"]["file_infos"]
    assert f"{folder}/stdout" in [file["path"] for file in files], files
    read = {"type": "READ_FILE", "read_file": {"path": f"{folder}/stdout", "offset": 0, "length": 5}}
    answer = agent.call(read)["read_file"]
    assert len(answer["data"]) <= 5 <= answer["size"] or answer["size"] < 5, answer
    # a session in the container that the state tells
    session = Session(agent, container, shell("echo $0 $MESOS_SANDBOX"))
    session.finish()
    assert session.out, "the session of a task's container prints"


def refusals(agent, parent):
    def launch(**changes):
        value = {"container_id": {"value": str(uuid.uuid4()), "parent": parent}, "command": shell("true"), **changes}
        return {"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": value}

    line = agent.call(launch(container_id={"parent": parent}), status=400)
    assert line.startswith("launch_nested_container_session.container_id.value: missing"), line
    line = agent.call(launch(container_id={"value": "a"}), status=400)
    assert line.startswith("launch_nested_container_session.container_id.parent: missing"), line
    line = agent.call(launch(container_id={"value": "../a", "parent": parent}), status=400)
    assert line.startswith("launch_nested_container_session.container_id.value: "), line
    agent.call(launch(container_id={"value": "a", "parent": {"value": "000000000000"}}), status=404)
    agent.call(launch(container={"type": "DOCKER"}), status=400)
    agent.call({"type": "PRUNE_IMAGES"}, status=501)
    nobody = {"value": "nobody", "parent": parent}
    agent.call({"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": {"container_id": nobody}}, status=404)
    agent.call({"type": "KILL_NESTED_CONTAINER", "kill_nested_container": {"container_id": nobody}}, status=404)
    put = agent.input(nobody)
    put.end()
    assert put.answer() == 404

    def status(body=b"{}", method="POST", **headers):
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        connection = Connection(agent.where, method=method, headers=pairs).send(body)
        found = connection.answer()
        assert connection.headers["content-type"].startswith("text/plain"), connection.headers
        line = connection.body()
        assert line.count(b"\n") == 1, line
        return found

    health = agent.form.encode("Call", {"type": "GET_HEALTH"})
    assert status(health) == 400
    assert status(health, Content_Type="text/plain") == 415
    assert status(health, Content_Type=agent.form.media, Accept="text/html") == 406
    assert status(health, Content_Type=agent.form.media, Accept="application/recordio", Message_Accept="text/x") == 406
    assert status(b"", method="GET") == 405
    assert status(b"\x01{", Content_Type=agent.form.media) == 400
    assert status(b"x", Content_Type="application/recordio") == 400
    assert status(b"x", Content_Type="application/recordio", Message_Content_Type=agent.form.media) == 400
    assert status(record(health), Content_Type="application/recordio", Message_Content_Type=agent.form.media) == 415
    assert status(b"99999999\n", Content_Type="application/recordio", Message_Content_Type=agent.form.media) == 400


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", help="the agent's Unix socket")
    where.add_argument("--address", help="HOST:PORT of the agent")
    parser.add_argument("--instance", required=True, help="id of the instance whose container the sessions run in")
    parser.add_argument("--container", help="name of the container; may be left out where there is one")
    parser.add_argument("--format", choices=["json", "protobuf"], required=True)
    parser.add_argument("cases", nargs="*", help="cases to run; all where none is named")
    given = parser.parse_args()
    if given.address:
        host, port = given.address.rsplit(":", 1)
        given.socket = (host, int(port))
    parent = {"value": given.instance}
    if given.container:
        parent = {"value": given.container, "parent": parent}
    agent = Agent(given.socket, Json if given.format == "json" else Protobuf)
    cases = [
        without_tty, input_is_answered_at_the_end, with_tty, much, disconnect_destroys, without_session, told, refusals,
    ]
    for case in cases:
        if given.cases and case.__name__ not in given.cases:
            continue
        try:
            case(agent, parent)
        except (AssertionError, Closed, OSError) as error:
            print(f"FAILED {case.__name__}: {type(error).__name__} {error}", file=sys.stderr)
            raise
        print(f"ok {case.__name__}", flush=True)


if __name__ == "__main__":
    main()
