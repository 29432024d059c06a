#!/usr/bin/env python3
"""A receiver of OTLP metrics, made of OpenTelemetry's own definitions: prints what it gets, as JSON lines.

usage: otlp_receiver.py http|grpc PORT [--tls CERTIFICATE KEY] [TROUBLE ...]

The first line is the port; PORT 0 takes any. Each request is one line: where it went, its headers, and its points. The first
requests have the troubles that are named, in their order, and their lines say which. `stall` never answers. Over gRPC, a status
such as UNAVAILABLE is answered with the wish to be asked again in a second. Over HTTP, a status such as 503 likewise; `cut`
breaks off the answer, and `reset` resets the connection in the midst of the request, whose line has no points.
"""
import argparse
import gzip
import http.server
import json
import socket
import ssl
import struct
import threading
from concurrent import futures

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service


def say(line):
    print(json.dumps(line), flush=True)


def value(of):
    return getattr(of, of.WhichOneof("value"))


def attributes(of):
    return {pair.key: value(pair.value) for pair in of}


def points(request):
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind)
                for point in data.data_points:
                    yield {
                        "resource": attributes(resource.resource.attributes),
                        "scope": scope.scope.name,
                        "name": metric.name,
                        "unit": metric.unit,
                        "kind": kind,
                        "monotonic": getattr(data, "is_monotonic", None),
                        "temporality": getattr(data, "aggregation_temporality", None),
                        "type": point.WhichOneof("value"),
                        "value": value(point),
                        "time": point.time_unix_nano,
                        "start": point.start_time_unix_nano,
                        "attributes": attributes(point.attributes),
                    }


class Handler(http.server.BaseHTTPRequestHandler):
    troubles = []

    def do_POST(self):
        length = int(self.headers["content-length"])
        trouble = self.troubles.pop(0) if self.troubles else None
        if trouble == "reset":
            self.rfile.read(length // 2)
            say({"trouble": trouble, "points": []})
            # A close that does not linger is a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()
            self.close_connection = True
            return
        body = self.rfile.read(length)
        packed = self.headers.get("content-encoding") == "gzip"
        request = service.ExportMetricsServiceRequest.FromString(gzip.decompress(body) if packed else body)
        headers = {name.lower(): text for name, text in self.headers.items()}
        line = {"path": self.path, "headers": headers, "points": list(points(request))}
        if trouble:
            say({"trouble": trouble, **line})
            self.trouble(trouble)
            return
        say(line)
        answer = service.ExportMetricsServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def trouble(self, word):
        self.close_connection = True
        if word == "stall":
            # Until the client hangs up.
            self.rfile.read(1)
        elif word == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        else:
            self.send_response(int(word))
            self.send_header("retry-after", "1")
            self.send_header("content-length", "7")
            self.end_headers()
            self.wfile.write(b"not now")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that does not like the certificate hangs up: that is its affair."""


def serve_http(port, tls, troubles):
    Handler.troubles = troubles
    server = Server(("127.0.0.1", port), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    say(server.server_port)
    server.serve_forever()


def message(field, contents):
    """A short message, or a string, inside of another (protocol buffers, kind 2)."""
    return bytes([field << 3 | 2, len(contents)]) + contents


def in_a_second(code):
    """google.rpc.Status with google.rpc.RetryInfo: retry_delay 1, seconds 1."""
    info = message(1, bytes([1 << 3, 1]))
    wrapped = message(1, b"type.googleapis.com/google.rpc.RetryInfo") + message(2, info)
    return bytes([1 << 3, code]) + message(3, wrapped)


def serve_grpc(port, tls, troubles):
    import grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as stubs

    def trouble(word, context):
        if word == "stall":
            over = threading.Event()
            context.add_callback(over.set)
            over.wait()
        else:
            code = grpc.StatusCode[word]
            context.set_trailing_metadata([("grpc-status-details-bin", in_a_second(code.value[0]))])
            context.abort(code, "not now")

    class Metrics(stubs.MetricsServiceServicer):
        def Export(self, request, context):
            headers = dict(context.invocation_metadata())
            line = {"path": "Export", "headers": headers, "points": list(points(request))}
            if troubles:
                word = troubles.pop(0)
                say({"trouble": word, **line})
                trouble(word, context)
            else:
                say(line)
            return service.ExportMetricsServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(4))
    stubs.add_MetricsServiceServicer_to_server(Metrics(), server)
    if tls:
        certificate, key = (open(path, "rb").read() for path in tls)
        credentials = grpc.ssl_server_credentials([(key, certificate)])
        bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    else:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    say(bound)
    server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("protocol", choices=["http", "grpc"])
    parser.add_argument("port", type=int)
    parser.add_argument("--tls", nargs=2)
    parser.add_argument("troubles", nargs="*")
    args = parser.parse_args()
    serve = {"http": serve_http, "grpc": serve_grpc}[args.protocol]
    serve(args.port, args.tls, args.troubles)

