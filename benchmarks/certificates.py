"""An authority and a server certificate of one run, and a CA bundle of real size that trusts it."""

from __future__ import annotations

from pathlib import Path

import certifi
import trustme


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Make all that TLS on 127.0.0.1 needs.

    :param folder: Where to.
    :returns: The paths of the server's certificate, its key, and the bundle that clients verify against.
    """
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    certificate, key, bundle = folder / "server.pem", folder / "server.key", folder / "bundle.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    server.private_key_pem.write_to_path(str(key))
    bundle.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + authority.cert_pem.bytes())
    return certificate, key, bundle
