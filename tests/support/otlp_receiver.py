#!/usr/bin/env python3
"""A receiver of OTLP metrics, made of OpenTelemetry's own definitions: prints what it gets, as JSON lines.

usage: otlp_receiver.py http|grpc PORT

The first line is the port; PORT 0 takes any. Each request is one line: where it went, its headers, and its points.
"""
import gzip
import http.server
import json
import sys
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
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        packed = self.headers.get("content-encoding") == "gzip"
        request = service.ExportMetricsServiceRequest.FromString(gzip.decompress(body) if packed else body)
        headers = {name.lower(): text for name, text in self.headers.items()}
        say({"path": self.path, "headers": headers, "points": list(points(request))})
        answer = service.ExportMetricsServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def serve_http(port):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    say(server.server_port)
    server.serve_forever()


def serve_grpc(port):
    import grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as stubs

    class Metrics(stubs.MetricsServiceServicer):
        def Export(self, request, context):
            headers = dict(context.invocation_metadata())
            say({"path": "Export", "headers": headers, "points": list(points(request))})
            return service.ExportMetricsServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(4))
    stubs.add_MetricsServiceServicer_to_server(Metrics(), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    say(bound)
    server.wait_for_termination()


if __name__ == "__main__":
    {"http": serve_http, "grpc": serve_grpc}[sys.argv[1]](int(sys.argv[2]))
