"""Where a policy is served: a socket that listens on this machine alone."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dpvla.config import one_line
from dpvla.files import check_folder
from dpvla_devkit.address import Address


class ServingError(ValueError):
    """It cannot be served there."""


@contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """A listening socket, to which only this user can connect where it is a file; the file is removed in the end.

    Raises ServingError: something else is there, or the operating system refuses.
    """
    if address.path:
        check_folder(Path(address.path).parent)
    with address.socket() as listener:
        try:
            if address.path:
                _bind_file(listener, address.path)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address.name)
            listener.listen(128)
        except OSError as error:
            raise ServingError(f"--address {address}: {one_line(error)}; choose another") from None
        mine = os.stat(address.path) if address.path else None
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if mine is not None and os.path.samestat(os.stat(address.path), mine):
                    os.unlink(address.path)


def _bind_file(listener: socket.socket, path: str) -> None:
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ServingError(f"--address {path} is there and no socket; choose another")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.settimeout(1.0)
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)  # of a server that was killed
            else:
                raise ServingError(f"--address {path}: a server listens there already; stop it, or choose another")
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
