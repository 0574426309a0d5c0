"""An SFTP server on loopback: ``python -m harness.storages.sftp_server PORT FOLDER``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import asyncssh

#: OpenSSH's server closes the channel at a message that is longer; a write has some fields before its data.
_MAX_MESSAGE_BYTES = 256 * 1024
_WRITE_FIELDS_BYTES = 64

#: In a folder of this name, nothing may be written or read.
FORBIDDEN = b"forbidden"
#: In a folder of this name, no file can be linked.
NO_LINKS = b"no-links"
#: In a folder of this name, no file can be linked, and an exclusive open overwrites.
CARELESS = b"careless"


class _Login(asyncssh.SSHServer):
    """Accepts one login."""

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("key", "secret")


class _Files(asyncssh.SFTPServer):
    """Serves a folder as OpenSSH would."""

    def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
        self._check(path)
        if CARELESS in path.split(b"/"):
            pflags &= ~asyncssh.FXF_EXCL
        return super().open(path, pflags, attrs)

    def link(self, oldpath: bytes, newpath: bytes) -> Any:
        if {NO_LINKS, CARELESS} & set(newpath.split(b"/")):
            raise asyncssh.SFTPOpUnsupported("no links")
        return super().link(oldpath, newpath)

    def mkdir(self, path: bytes, attrs: Any) -> Any:
        self._check(path)
        return super().mkdir(path, attrs)

    def scandir(self, path: bytes) -> Any:
        self._check(path)
        return super().scandir(path)

    def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
        if len(data) > _MAX_MESSAGE_BYTES - _WRITE_FIELDS_BYTES:
            self.channel.abort()
            raise asyncssh.SFTPBadMessage("message too long")
        return super().write(file_obj, offset, data)

    def _check(self, path: bytes) -> None:
        if FORBIDDEN in path.split(b"/"):
            raise asyncssh.SFTPPermissionDenied("Permission denied")


async def serve(port: int, folder: str) -> None:
    """Serve until killed.

    :param port: The port on loopback.
    :param folder: The folder, which clients see as the root.
    """
    await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=_Login,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        sftp_factory=lambda channel: _Files(channel, chroot=folder.encode()),
        allow_scp=False,
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
