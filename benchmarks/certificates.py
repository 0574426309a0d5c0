"""A certificate authority and a server certificate for one run, and a CA bundle of realistic size that includes it."""

from __future__ import annotations

from pathlib import Path

import certifi
import trustme


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Create the certificates for TLS on 127.0.0.1.

    :param folder: The folder of the files.
    :returns: The paths of the server's certificate, its key, and the bundle with which clients verify it.
    """
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    certificate, key, bundle = folder / "server.pem", folder / "server.key", folder / "bundle.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    server.private_key_pem.write_to_path(str(key))
    bundle.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + authority.cert_pem.bytes())
    return certificate, key, bundle
