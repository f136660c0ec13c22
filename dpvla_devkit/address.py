"""Where the policy is served: a socket file, or a port of this machine. Python 3.9 and the standard library alone."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass

DEFAULT = "~/.cache/dpvla/policy.sock"
"""In the user's own folder: nobody else can put another server there, or ask this one."""
_LONGEST = 107
"""Bytes of a socket file's path that the operating system takes."""


class AddressError(ValueError):
    """No address at which a policy can be served."""


@dataclass(frozen=True)
class Address:
    """A socket file, or a port of this machine."""

    path: str = ""  # of the file; none: a port
    host: str = ""  # IP address
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """``HOST:PORT`` (``127.0.0.1:7007``, ``[::1]:7007``, ``localhost:7007``), else the path of a socket file.

        Raises AddressError for another machine, or a path that no socket can have.
        """
        found = re.fullmatch(r"(\[[^/\]]+\]|[^/:]+):(\d{1,5})", text)
        if found:
            host = "127.0.0.1" if found[1] == "localhost" else found[1].strip("[]")
            try:
                local = ipaddress.ip_address(host).is_loopback
            except ValueError:
                local = False
            if not local:
                raise AddressError(
                    f"{text:.200}: a policy is served on its own machine alone (127.0.0.1:PORT, [::1]:PORT or a socket "
                    "file). To reach it from another, forward a port: ssh -L"
                )
            if not 1 <= int(found[2]) <= 65535:
                raise AddressError(f"{text}: a port is a number from 1 to 65535")
            return cls(host=host, port=int(found[2]))
        path = os.path.abspath(os.path.expanduser(text))
        if not text or "\0" in text or len(os.fsencode(path)) > _LONGEST:
            raise AddressError(
                f"{path[:200]!r} cannot be a socket file: its path has at most {_LONGEST} bytes; choose a shorter one"
            )
        return cls(path=path)

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    def socket(self) -> socket.socket:
        """A new one of its kind."""
        family = socket.AF_UNIX if self.path else socket.AF_INET6 if ":" in self.host else socket.AF_INET
        return socket.socket(family, socket.SOCK_STREAM)

    @property
    def name(self) -> str | tuple[str, int]:
        """What a socket is bound or connected to."""
        return self.path or (self.host, self.port)
