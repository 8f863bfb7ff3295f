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
"""The address that `serve` and `demo` listen at."""

import socket


def refuse_taken_address(host: str, port: int | None) -> None:
    """
    Args:
        host (`str`):
            Address to listen at.
        port (`int`, *optional*):
            Port; any when missing.

    Raises:
        OSError: If nothing can listen there, which a server would find out after the model is loaded.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):
            pass
    except OSError as error:
        where = host if port is None else f"{host}, port {port}"
        raise OSError(f"nothing can listen at {where}: {error.strerror}") from error
