#!/usr/bin/env python3
"""Takes OTLP over HTTP in protobuf and writes each request as a line of JSON, for a test to read.

    otlp_receiver.py FILE

Decodes with the messages of the package `opentelemetry-proto`; shares no code with the daemon. Listens on a free port of
loopback, which the first line on standard output says. What it cannot decode is answered 400 and written as an `error`.
"""

import gzip
import http.server
import json
import sys
import threading

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

REQUESTS = {
    "/v1/metrics": metrics_service_pb2.ExportMetricsServiceRequest,
    "/v1/traces": trace_service_pb2.ExportTraceServiceRequest,
}
ANSWERS = {
    "/v1/metrics": metrics_service_pb2.ExportMetricsServiceResponse,
    "/v1/traces": trace_service_pb2.ExportTraceServiceResponse,
}


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        line = {"path": self.path, "encoding": self.headers.get("content-encoding", "identity")}
        status, answer = 200, b""
        try:
            if line["encoding"] == "gzip":
                body = gzip.decompress(body)
            request = REQUESTS[self.path].FromString(body)
            line["request"] = MessageToDict(request)
            answer = ANSWERS[self.path]().SerializeToString()
        except Exception as error:  # whatever is wrong with a request is the test's to judge
            line["error"] = f"{type(error).__name__}: {error}"
            status = 400
        with self.server.lock:
            self.server.out.write(json.dumps(line) + "\n")
            self.server.out.flush()
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.daemon_threads = True
    server.lock = threading.Lock()
    server.out = open(sys.argv[1], "w", encoding="utf-8")
    print(f"listening on {server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
