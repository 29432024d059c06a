"""HTTPS servers and a name server on the loopback interface, for tests/suite/intercept.rs.

usage: tls_servers.py DIRECTORY

Makes a certificate authority in DIRECTORY/ca.pem and serves three names: a.test and e.test, certified by it, and s.test,
whose certificate is of another authority. Prints a line 'NAME PORT' for each, 'dns PORT', and 'ready'. The name server
gives every name the address in DIRECTORY/address. Requests are appended to DIRECTORY/NAME.log. Answers: /echo repeats the
request, /header repeats the header Authorization in a header.
"""

import http.server
import pathlib
import socket
import ssl
import subprocess
import sys
import threading

top = pathlib.Path(sys.argv[1])
KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def openssl(*words):
    subprocess.run(["openssl", *words], cwd=top, check=True, capture_output=True)


def authority(name):
    openssl("req", "-x509", *KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "30", "-subj", f"/CN={name}")


def certify(name, by):
    (top / f"{name}.ext").write_text(f"subjectAltName=DNS:{name}\n")
    openssl("req", *KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=server")
    openssl(
        *["x509", "-req", "-in", f"{name}.csr", "-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-CAcreateserial"],
        *["-out", f"{name}.crt", "-days", "30", "-extfile", f"{name}.ext"],
    )


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        seen = f"{self.requestline}\n{self.headers}".encode() + body + b"\n"
        with open(top / f"{self.server.host}.log", "ab") as log:
            log.write(seen)
        answer = seen if self.path == "/echo" else b"served\n"
        self.send_response(200)
        if self.path == "/header":
            self.send_header("X-Back", self.headers["authorization"])
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, host):
        super().__init__(("127.0.0.1", 0), Handler)
        self.host = host
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(top / f"{host}.crt", top / f"{host}.key")

    def finish_request(self, request, client_address):
        # In the thread of the connection: a client that fails its handshake keeps no other waiting.
        with self.context.wrap_socket(request, server_side=True) as stream:
            self.RequestHandlerClass(stream, client_address, self)

    def handle_error(self, *_):
        pass


def names(server):
    while True:
        question, peer = server.recvfrom(4096)
        end = 12
        while question[end]:
            end += question[end] + 1
        end += 5
        is_a = question[end - 4 : end - 2] == b"\0\1"
        answer = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0" + question[12:end]
        if is_a:
            address = socket.inet_aton((top / "address").read_text())
            answer += b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + address
        server.sendto(answer, peer)


authority("ca")
authority("other")
for host, by in [("a.test", "ca"), ("e.test", "ca"), ("s.test", "other")]:
    certify(host, by)
    served = Server(host)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    print(host, served.server_port, flush=True)
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.bind(("127.0.0.1", 0))
print("dns", resolver.getsockname()[1], flush=True)
print("ready", flush=True)
names(resolver)
