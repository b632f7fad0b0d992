"""MySQL 8 or newer, and MariaDB.

Durability is left on; the binary log is off in both, as MariaDB has it, so that they compare. The
time zone is an odd one on purpose.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from provision.packages import find_program, private_root, version_of
from provision.site import Site

USER = "pyncette"
PASSWORD = "pyncette-test"
# Debian's stable suites have no MySQL.
SUITES = ("unstable", "testing")
PACKAGE = r"mysql-server-core(-[0-9.]+)?"

ACCOUNT_SQL = """
CREATE DATABASE IF NOT EXISTS {user};
CREATE USER IF NOT EXISTS '{user}'@'%' IDENTIFIED {how} '{password}';
GRANT ALL PRIVILEGES ON *.* TO '{user}'@'%' WITH GRANT OPTION;
"""


def _installed_mysqld() -> str | None:
    """The machine's own MySQL 8 or newer; MariaDB also installs something of that name."""
    found = find_program("mysqld")
    if found is None or find_program("mariadbd") is not None:
        return None
    number = re.match(r"\d+", version_of([found, "--version"]))
    return found if number and int(number.group()) >= 8 else None


def create(site: Site) -> None:
    """One MySQL, of the machine or of a newer Debian suite."""
    installed = _installed_mysqld()
    if installed is not None:
        binary, options = [installed], []
    else:
        root = private_root(site.cache / "mysql", SUITES, PACKAGE)
        binary, share = root.command("usr/sbin/mysqld"), root.path / "usr/share/mysql"
        options = ["--basedir", str(root.path / "usr"), "--lc-messages-dir", str(share)]
        options += ["--character-sets-dir", str(share / "charsets")]
        options += ["--plugin-dir", str(root.path / "usr/lib/mysql/plugin")]
    data = site.data_dir / "data"
    options += ["--datadir", str(data), "--mysqlx=OFF", "--skip-log-bin"]
    options += ["--secure-file-priv=NULL"]
    site.run([*binary, "--no-defaults", *options, "--initialize-insecure"])
    secret = f"ALTER USER root@localhost IDENTIFIED BY '{PASSWORD}';\n"
    _serve(site, binary, options, data, "WITH caching_sha2_password BY", secret)


def create_mariadb(site: Site) -> None:
    """One MariaDB."""
    data = site.data_dir / "data"
    site.run(
        [
            *[site.program("mariadb-install-db"), "--no-defaults", f"--datadir={data}"],
            *["--auth-root-authentication-method=socket", "--skip-test-db"],
        ]
    )
    _serve(site, [site.program("mariadbd")], ["--datadir", str(data)], data, "BY", "")


def _serve(
    site: Site, binary: Sequence[str], options: Sequence[str], data: Path, how: str, extra: str
) -> None:
    version = version_of([*binary, "--version"])
    sql = extra + ACCOUNT_SQL.format(user=USER, password=PASSWORD, how=how)
    init_file = site.write(site.data_dir / "init.sql", sql)
    port = site.port()
    argv = [
        *[*binary, "--no-defaults", *options, "--init-file", str(init_file)],
        *["--bind-address=127.0.0.1", "--port", str(port), "--skip-name-resolve"],
        # Relative to the data directory: a deep checkout would exceed the limit for sockets.
        *["--socket=server.sock", "--pid-file=server.pid"],
        *["--default-time-zone=+05:45", "--max-connections=300"],
        # Nobody looks into the performance schema, which takes memory and time.
        *["--innodb-buffer-pool-size=128M", "--performance-schema=OFF"],
    ]
    site.describe(f"mysql://{USER}:{PASSWORD}@127.0.0.1:{port}/{USER}", version)
    site.await_ready(site.spawn(site.name, argv, port, "mysql", data))
