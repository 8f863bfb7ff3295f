# Copyright 2026 The dimple_hf team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Downloads of images, from public addresses only.

A name is resolved once, all its addresses are checked, and the connection goes to what was checked; so at every
redirect. Nobody reaches what only this machine can reach, whatever a name means a moment later. What is public is
RFC 6890's matter, as `ipaddress` has it.
"""

import ipaddress
import socket
from typing import Any
from urllib.parse import urljoin

import anyio
import httpcore2

from .images import too_large
from .limits import RefusedRequest

#: Longest wait for an image, redirects included.
FETCH_SECONDS = 20

MAX_REDIRECTS = 5

HEADERS = [("User-Agent", "dimple_hf (python)"), ("Accept", "image/*")]  # some hosts refuse Python's own name


def is_public(address: str) -> bool:
    """
    Args:
        address (`str`):
            An IP address.

    Returns:
        `bool`: Whether it is one of the internet's. Of IPv6, what holds an IPv4 address is none.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if not ip.is_global or ip.is_multicast:
        return False
    return isinstance(ip, ipaddress.IPv4Address) or (
        ip in ipaddress.IPv6Network("2000::/3") and ip.sixtofour is None and ip.teredo is None
    )


async def public_address(host: str, port: int) -> str:
    """
    Args:
        host (`str`), port (`int`):
            What to connect to.

    Returns:
        `str`: Its IP address.

    Raises:
        OSError: If the name is unknown, or one of its addresses is not public.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for *_, address in found]
    for address in addresses:
        if not is_public(address):
            raise PermissionError("it is private")
    return addresses[0]


class _PublicNetwork(httpcore2.AnyIOBackend):
    """Connects to public addresses only. Certificates are still checked for the name."""

    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
        return await super().connect_tcp(await public_address(host, port), port, *args, **kwargs)


async def fetch(url: str, max_bytes: int) -> bytes:
    """
    Downloads an image from a public address, in at most `FETCH_SECONDS`.

    Args:
        url (`str`):
            An `http` or `https` URL.
        max_bytes (`int`):
            Most bytes.

    Returns:
        `bytes`: The file.

    Raises:
        RefusedRequest: If the address, or that of a redirect, is not public, cannot be read, is too slow, or has more.
    """
    try:
        with anyio.fail_after(FETCH_SECONDS):
            async with httpcore2.AsyncConnectionPool(network_backend=_PublicNetwork()) as pool:
                for _ in range(MAX_REDIRECTS + 1):
                    async with pool.stream("GET", url, headers=HEADERS) as response:
                        if response.status == 200:
                            return await _read(response, max_bytes)
                        url = _redirect(response, url)
        raise ConnectionError(f"it redirects more than {MAX_REDIRECTS} times")
    except RefusedRequest:
        raise
    except Exception as error:  # sockets, TLS, HTTP and URLs each have their own types
        reason = str(error) or f"it took too long, {type(error).__name__}"
        raise RefusedRequest(f"the address of an image must be public and readable ({reason})", "messages") from error


async def _read(response: httpcore2.Response, max_bytes: int) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_stream():
        data += chunk
        if len(data) > max_bytes:
            raise too_large(max_bytes)
    return bytes(data)


def _redirect(response: httpcore2.Response, url: str) -> str:
    """Where a response that is not the image leads to."""
    locations = [value.decode("latin-1") for name, value in response.headers if name.lower() == b"location"]
    if response.status not in (301, 302, 303, 307, 308) or not locations:
        raise ConnectionError(f"it answers with status {response.status}")
    return urljoin(url, locations[0])
