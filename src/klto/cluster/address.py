"""Cluster addresses, and what may be spoken to them: plain TCP on loopback alone, TLS everywhere else."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import NamedTuple

from klto.errors import UsageError

#: The environment variable that names the folder with this machine's certificates.
ENV_CERTS = "KLTO_CLUSTER_CERTS"


class Address(NamedTuple):
    """``local:N`` (``workers`` is N), ``tcp://...`` or ``tls://...`` (``workers`` is 0)."""

    text: str
    workers: int

    @property
    def tls(self) -> bool:
        """Whether certificates are needed."""
        return self.text.startswith("tls://")


def parse_address(text: str) -> Address:
    """Read an address.

    :raises UsageError: when it is none, or plain TCP to another machine.
    """
    local = re.fullmatch(r"local:([0-9]{1,4})", text)
    if local and 1 <= int(local[1]) <= 1024:
        return Address(text, int(local[1]))
    url = re.fullmatch(r"(tcp|tls)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})", text)
    if not url or int(url[3]) > 65535:
        raise UsageError(
            f"no cluster address: {text}",
            "tls://HOST:PORT, tcp://127.0.0.1:PORT, or local:N for N processes here",
        )
    if url[1] == "tcp" and not is_loopback(url[2].strip("[]")):
        raise UsageError(
            f"plain TCP to {url[2]}: off this machine only tls:// with certificates is spoken",
            "make them with: klto cluster certs",
        )
    return Address(text, 0)


def check_cluster(text: str) -> Address:
    """An address that this machine can use as a client: well formed, with what it takes installed.

    :raises UsageError: when it is not.
    """
    address = parse_address(text)
    check_extra()
    if address.tls:
        certificates("client")
    return address


def check_extra() -> None:
    """See that the extra ``klto[cluster]`` is installed.

    :raises UsageError: when it is not.
    """
    from importlib.util import find_spec

    for name in ("distributed", "cryptography"):
        if find_spec(name) is None:
            raise UsageError(
                f"no Python package {name}", "install what clusters need: pip install 'klto[cluster]'"
            )


def is_loopback(host: str) -> bool:
    """By its number; a name other than localhost could lead anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def certificates(role: str, folder: Path | None = None) -> tuple[Path, Path]:
    """(the authority's certificate, this role's certificate with its key).

    :param role: ``client``, ``scheduler`` or ``worker``.
    :raises UsageError: when they are not there.
    """
    folder = folder or Path(os.environ.get(ENV_CERTS) or default_folder())
    authority, own = folder / "ca.pem", folder / f"{role}.pem"
    for path in (authority, own):
        if not os.access(path, os.R_OK):
            raise UsageError(
                f"no certificate to read at {path}",
                f"make them once with: klto cluster certs; name their folder with {ENV_CERTS}",
            )
    return authority, own


def default_folder() -> Path:
    """Where certificates are when nothing else is said (XDG Base Directory Specification 0.8)."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "klto" / "certs"
