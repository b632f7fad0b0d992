"""Redis alone, as a cluster, under sentinels; and Valkey.

All keep an append-only file synced every second, as a scheduler's Redis should, so that a restart
keeps the data.
"""

from collections.abc import Sequence
from pathlib import Path

from provision.packages import find_program, private_root, version_of
from provision.site import Site
from provision.state import ProcessRecord

CLUSTER_NODES = 6
SENTINELS = 3
MASTER_NAME = "pyncette"
VALKEY_SUITES = ("trixie", "testing", "unstable")

SENTINEL_CONFIGURATION = """
bind 127.0.0.1
port {port}
dir {directory}
sentinel monitor {name} 127.0.0.1 {master} 2
sentinel down-after-milliseconds {name} 1000
sentinel failover-timeout {name} 5000
"""


def _spawn(
    site: Site, binary: Sequence[str], name: str, port: int, *options: str, probe: str = "redis"
) -> ProcessRecord:
    directory = site.directory(name)
    argv = [
        *[*binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)],
        *["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"],
        # A replica that was killed must not hold up the orderly end of its master.
        *["--shutdown-timeout", "1", *options],
    ]
    return site.spawn(name, argv, port, probe, directory)


def _single(site: Site, binary: Sequence[str]) -> None:
    port = site.port()
    site.describe(f"redis://127.0.0.1:{port}/0", version_of([*binary, "--version"]))
    site.await_ready(_spawn(site, binary, site.name, port))


def create(site: Site) -> None:
    """One server."""
    _single(site, [site.program("redis-server")])


def create_valkey(site: Site) -> None:
    """One Valkey, of the machine or of a newer Debian suite."""
    installed = find_program("valkey-server")
    if installed is not None:
        _single(site, [installed])
        return
    root = private_root(site.cache / "valkey", VALKEY_SUITES, "valkey-server")
    _single(site, root.command("usr/bin/valkey-server"))


def create_cluster(site: Site) -> None:
    """Three masters with one replica each."""
    binary = [site.program("redis-server")]
    listen = [(site.port(), site.port()) for _ in range(CLUSTER_NODES)]
    addresses = [f"127.0.0.1:{port}" for port, _ in listen]
    url = "redis+cluster://" + ",".join(addresses)
    site.describe(url, version_of([*binary, "--version"]))
    nodes = []
    for number, (port, bus) in enumerate(listen, start=1):
        options = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
        options += ["--cluster-port", str(bus), "--cluster-node-timeout", "2000"]
        nodes.append(_spawn(site, binary, f"node-{number}", port, *options))
    for node in nodes:
        site.await_ready(node)
    client = [site.program("redis-cli"), "--cluster", "create", *addresses]
    site.run([*client, "--cluster-replicas", "1", "--cluster-yes"])
    for node in nodes:
        site.await_ready(node, "redis-cluster")


def create_sentinel(site: Site) -> None:
    """One master, one replica, and three sentinels that fail over after a second."""
    binary = [site.program("redis-server")]
    master = _spawn(site, binary, "master", site.port())
    site.await_ready(master)
    follow = ["--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0"]
    port = site.port()
    replica = _spawn(site, binary, "replica", port, *follow, probe="redis-replica")
    # Sentinels that meet the master before its replica look again only ten seconds later.
    site.await_ready(replica)
    sentinels = [_spawn_sentinel(site, binary, n, master.port) for n in range(1, SENTINELS + 1)]
    hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    site.describe(f"redis+sentinel://{hosts}/{MASTER_NAME}/0", version_of([*binary, "--version"]))
    for sentinel in sentinels:
        site.await_ready(sentinel)


def _spawn_sentinel(site: Site, binary: Sequence[str], number: int, master: int) -> ProcessRecord:
    name, port = f"sentinel-{number}", site.port()
    directory: Path = site.directory(name)
    text = SENTINEL_CONFIGURATION.format(
        port=port, directory=directory, name=MASTER_NAME, master=master
    )
    # The sentinel rewrites its configuration with what it learns.
    path = site.write(directory / "sentinel.conf", text)
    argv = [*binary, str(path), "--sentinel"]
    return site.spawn(name, argv, port, "redis-sentinel", directory)
