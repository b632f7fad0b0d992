"""The unprivileged user that servers run as when the caller is root.

PostgreSQL and pgbouncer refuse to run as root, and the others should not; initdb wants the user
to have a name, so a bare number does not do.
"""

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from provision.errors import UnavailableError

NAME = "pyncette-servers"


class PopenOptions(TypedDict, total=False):
    """The arguments of `subprocess` that change the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Account:
    """Whom servers run as: the caller (both None), or a user of their own.

    Attributes:
        uid: user id to change to, None to stay.
        gid: group id to change to, None to stay.
    """

    uid: int | None = None
    gid: int | None = None

    def popen_options(self) -> PopenOptions:
        """Keywords for `subprocess` that start a program as this account."""
        if self.uid is None or self.gid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give a file or directory to the account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def can_reach(self, path: Path) -> bool:
        """Whether the account can walk to `path`, the part of it that exists already."""
        if self.uid is None:
            return True
        for parent in [path, *path.parents]:
            try:
                stat = parent.stat()
            except FileNotFoundError:
                continue
            if stat.st_uid != self.uid and not stat.st_mode & 0o001:
                return False
        return True


def unprivileged() -> Account:
    """The account for servers: the caller, or, for root, a system user made on first use.

    Raises:
        UnavailableError: the caller is root and the user cannot be made.
    """
    if os.geteuid() != 0:
        return Account()
    try:
        entry = pwd.getpwnam(NAME)
    except KeyError:
        entry = _create()
    return Account(entry.pw_uid, entry.pw_gid)


def _create() -> pwd.struct_passwd:
    argv = ["useradd", "--system", "--user-group", "--no-create-home"]
    argv += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", NAME]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        reason = done.stderr.strip()
    except OSError as error:
        reason = str(error)
    try:
        # When another checkout made it at the same moment, useradd failed and all is well.
        return pwd.getpwnam(NAME)
    except KeyError:
        raise UnavailableError(
            f"cannot make the user {NAME} that servers run as: {reason}; run as another user"
        ) from None
