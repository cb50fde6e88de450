"""How a session trusts the proxy's certificate authority, if its rules need requests over TLS to be read."""

from __future__ import annotations

#: A directory in the runtime directory with certificates only, and the file in it.
CERTIFICATES_DIR, BUNDLE_FILE = "egress-ca", "certificates.pem"
#: Where sessions see the directory.
INSIDE = "/etc/kernelsvc"

#: Variables by which programs find certificates: OpenSSL and Python's ssl, requests, curl, Node.js, pip, git, uv and
#: httpx, AWS's tools, Cargo, Deno. Node.js adds the file to its own list, and the others replace theirs.
_VARIABLES = (
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "GIT_SSL_CAINFO"),
    *("AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO", "DENO_CERT"),
)


#: GNU Wget reads no variable, but this file (wget(1)).
TRUST_FILES = {"/etc/wgetrc": f"ca_certificate = {INSIDE}/{BUNDLE_FILE}\n"}


def trust_variables() -> dict[str, str]:
    """Return the environment variables of such a session."""
    return dict.fromkeys(_VARIABLES, f"{INSIDE}/{BUNDLE_FILE}")
