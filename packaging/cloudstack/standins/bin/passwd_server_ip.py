#!/usr/bin/python3
"""Stand-in: the password server of one address. passwd_server_ip.py ADDRESS[,ADDRESS]"""
import http.server
import os
import secrets
import sys
import urllib.parse

LISTEN = sys.argv[1].split(",")[0]
STORE = "/var/cache/cloud/passwords-" + LISTEN
TOKEN = "/tmp/passwdsrvrtoken"
passwords = {}


def save():
    with open(STORE, "w") as f:
        f.writelines("%s=%s\n" % pair for pair in passwords.items())
    os.chmod(STORE, 0o600)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def reply(self, text):
        self.send_response(200)
        self.send_header("Content-type", "text/plain")
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        client, want = self.client_address[0], self.headers.get("DomU_Request")
        if want == "send_my_password":
            self.reply(passwords.get(client, "saved_password"))
        elif want == "saved_password":
            if passwords.pop(client, None) is not None:
                save()
            self.reply("saved_password")
        else:
            self.reply("bad_request")

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        with open(TOKEN) as f:
            known = f.read()
        if self.client_address[0] in ("127.0.0.1", LISTEN) and form.get("token") == [known]:
            passwords[form["ip"][0]] = form["password"][0]
            save()
        self.reply("")


if not os.path.exists(TOKEN):
    with open(TOKEN, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
        f.write(secrets.token_hex(16))
try:
    with open(STORE) as f:
        passwords = dict(line.rstrip("\n").split("=", 1) for line in f if "=" in line)
except OSError:
    pass
http.server.ThreadingHTTPServer((LISTEN, 8080), Handler).serve_forever()
