"""PostgreSQL, and pgbouncer in transaction mode in front of it.

Durability is left on (fsync, synchronous_commit): it is part of what is measured. The time zone is
an odd one on purpose.
"""

import signal
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

from provision.errors import UnavailableError
from provision.packages import version_of
from provision.site import Site

USER = "pyncette"
PASSWORD = "pyncette-test"
OLDEST = 13

CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
# Socket paths have a length limit that a deep checkout would exceed.
unix_socket_directories = ''
max_connections = 300
shared_buffers = 64MB
# Files, not /dev/shm: a killed server must leave nothing behind.
dynamic_shared_memory_type = mmap
timezone = 'Asia/Kathmandu'
log_timezone = 'UTC'
lc_messages = 'C'
"""

PGBOUNCER_CONFIGURATION = """
[databases]
* = host={host} port={upstream_port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {auth_file}
admin_users = {user}
pool_mode = transaction
max_client_conn = 1000
default_pool_size = 20
ignore_startup_parameters = extra_float_digits
"""


def create(site: Site) -> None:
    """One server whose superuser has a password and a database, both of its name."""
    binary = site.program("postgres")
    version = version_of([binary, "--version"])
    if int(version.split(".")[0]) < OLDEST:
        raise UnavailableError(f"PostgreSQL {version} is too old, {OLDEST} or newer is needed")
    data = site.data_dir / "data"
    password_file = site.write(site.data_dir / "password", PASSWORD)
    site.run(
        [
            *[str(Path(binary).resolve().with_name("initdb")), "--pgdata", str(data), "--no-sync"],
            *["--username", USER, "--pwfile", str(password_file), "--auth", "scram-sha-256"],
            *["--encoding", "UTF8", "--locale", "C.UTF-8"],
        ]
    )
    port = site.port()
    with (data / "postgresql.conf").open("a") as configuration:
        configuration.write(CONFIGURATION.format(port=port))
    site.run([binary, "--single", "-D", str(data), "postgres"], f"CREATE DATABASE {USER}\n")
    site.describe(f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/{USER}", version)
    process = site.spawn(
        "postgres", [binary, "-D", str(data)], port, "postgres", data, signal.SIGINT
    )
    site.await_ready(process)


def create_pgbouncer(site: Site) -> None:
    """A pooler that takes the credentials of the PostgreSQL behind it."""
    upstream = urlsplit(site.upstream_url)
    user, password = unquote(upstream.username or ""), unquote(upstream.password or "")
    binary = site.program("pgbouncer")
    port = site.port()
    auth_file = site.write(site.data_dir / "users.txt", f'"{user}" "{password}"\n')
    configuration = PGBOUNCER_CONFIGURATION.format(
        host=upstream.hostname or "127.0.0.1",
        upstream_port=upstream.port or 5432,
        port=port,
        auth_file=auth_file,
        user=user,
    )
    path = site.write(site.data_dir / "pgbouncer.ini", configuration)
    netloc = upstream.netloc.rpartition("@")[0]
    url = f"postgresql://{netloc}@127.0.0.1:{port}{upstream.path}"
    site.describe(url, version_of([binary, "--version"]))
    process = site.spawn("pgbouncer", [binary, str(path)], port, "postgres", site.data_dir)
    site.await_ready(process)


def allow_restart(data_dir: Path) -> None:
    """Remove the lock file of a server that is known to be dead.

    Its own check takes a zombie that nobody has reaped yet for a server that runs. Processes of
    the old server that linger are still noticed, by the shared memory that they hold.
    """
    (data_dir / "postmaster.pid").unlink(missing_ok=True)


def release_shared_memory(data_dir: Path) -> None:
    """Give back the System V segment of a server that was killed and will not start again.

    The server keeps its key and id in the seventh line of `postmaster.pid` and removes the file
    when it ends in order (src/include/utils/pidfile.h).
    """
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        segment = lines[6].split()[1]
    except (OSError, IndexError):
        return
    subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)
