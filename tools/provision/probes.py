"""Ask a server whether it serves, in the first bytes of its own protocol.

Each probe returns False for "not yet" and lets `OSError` pass; `is_ready` turns that into False.
"""

import http.client
import socket
import struct
from collections.abc import Callable

TIMEOUT_S = 2.0
HOST = "127.0.0.1"


def _connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=TIMEOUT_S)


def postgres(port: int) -> bool:
    """A start-up packet is answered with a request for authentication, not with an error.

    https://www.postgresql.org/docs/current/protocol-message-formats.html
    """
    body = struct.pack("!i", 196_608) + b"user\0pyncette\0database\0pyncette\0\0"
    with _connect(port) as connection:
        connection.sendall(struct.pack("!i", len(body) + 4) + body)
        return connection.recv(1) == b"R"


def mysql(port: int) -> bool:
    """The server greets with protocol version 10; with an error packet while it starts."""
    with _connect(port) as connection:
        return connection.recv(5)[4:5] == b"\x0a"


def http_server(port: int) -> bool:
    """Any answer to a request will do."""
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status > 0
    except http.client.HTTPException:
        return False
    finally:
        connection.close()


def redis_command(port: int, *words: str) -> str:
    """Send one command and return the raw start of its answer (RESP, up to 64 KiB)."""
    request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    with _connect(port) as connection:
        connection.sendall(request.encode())
        return connection.recv(65_536).decode(errors="replace")


def redis(port: int) -> bool:
    """PONG; an error while the server still loads its data."""
    return redis_command(port, "PING").startswith("+PONG")


def redis_cluster(port: int) -> bool:
    """The node sees every slot served."""
    return "cluster_state:ok" in redis_command(port, "CLUSTER", "INFO")


def redis_replica(port: int) -> bool:
    """A replica in step with its master; after a failover it may be the master itself."""
    answer = redis_command(port, "INFO", "replication")
    return "role:master" in answer or "master_link_status:up" in answer


def redis_sentinel(port: int) -> bool:
    """The sentinel could carry out a failover: it knows the others and a replica."""
    quorum = redis_command(port, "SENTINEL", "CKQUORUM", "pyncette")
    replicas = redis_command(port, "SENTINEL", "REPLICAS", "pyncette")
    return quorum.startswith("+OK") and replicas.startswith("*") and not replicas.startswith("*0")


PROBES: dict[str, Callable[[int], bool]] = {
    "postgres": postgres,
    "mysql": mysql,
    "http": http_server,
    "redis": redis,
    "redis-cluster": redis_cluster,
    "redis-replica": redis_replica,
    "redis-sentinel": redis_sentinel,
}


def is_ready(probe: str, port: int) -> bool:
    """Whether the server on that port serves now."""
    try:
        return PROBES[probe](port)
    except OSError:
        return False
