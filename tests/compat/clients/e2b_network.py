"""The network of E2B's sandboxes: addresses, names, headers, changes, own servers. ``fake_internet.py`` runs it."""

import httpx
from e2b import ALL_TRAFFIC, CommandExitException, Sandbox

DNS, OTHER = "https://1.1.1.1", "https://8.8.8.8"
SERVER = """python3 -c "
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write((self.headers['Host'] + ' ' + self.headers.get('X-Team', '')).encode())
server = http.server.HTTPServer(('127.0.0.1', 8080), Echo)
print('ready', flush=True)
server.serve_forever()
" """


def status(box, url):
    """Return the status of a request, or that it was refused."""
    try:
        return box.commands.run(f"curl -s --max-time 10 -o /dev/null -w '%{{http_code}}' {url}").stdout
    except CommandExitException:
        return "refused"


with Sandbox.create(network={"allow_out": ["1.1.1.1"], "deny_out": [ALL_TRAFFIC]}) as box:
    assert (status(box, DNS), status(box, OTHER)) == ("301", "refused")
    assert status(box, "https://connectivitycheck.gstatic.com") == "refused"
    box.update_network({})
    assert (status(box, DNS), status(box, OTHER)) == ("301", "302")
    box.update_network({"deny_out": ["8.8.8.8"]})
    assert (status(box, DNS), status(box, OTHER)) == ("301", "refused")
with Sandbox.create(network={"deny_out": ["8.8.8.8", "connectivitycheck.gstatic.com"]}) as box:
    assert (status(box, DNS), status(box, OTHER)) == ("301", "refused")
    assert status(box, "https://connectivitycheck.gstatic.com") == "refused"
    assert status(box, "http://169.254.169.254") == "403"
with Sandbox.create(allow_internet_access=False) as box:
    assert status(box, DNS) == "refused"
with Sandbox.create() as box:
    assert status(box, "https://connectivitycheck.gstatic.com") == "204"

# The sandbox's own servers, from outside.
with Sandbox.create(network={"mask_request_host": "app.example.com:${PORT}"}) as box:
    next(iter(box.commands.run(SERVER, background=True)))
    host = box.get_host(8080)
    assert httpx.get(f"https://{host}").text == "app.example.com:8080 "
    # Another sandbox reaches it with a header that the proxy sets.
    rules = {host: [{"transform": {"headers": {"X-Team": "blue"}}}]}
    for network, said in (({"rules": rules}, "app.example.com:8080 blue"), ({}, "app.example.com:8080 ")):
        with Sandbox.create(network=network) as other:
            assert other.commands.run(f"curl -s https://{host}").stdout == said
with Sandbox.create(network={"allow_public_traffic": False}) as box:
    next(iter(box.commands.run(SERVER, background=True)))
    url, token = f"https://{box.get_host(8080)}", {"E2B-Traffic-Access-Token": box.traffic_access_token}
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers=token).text == "localhost:8080 "
print("ok")
