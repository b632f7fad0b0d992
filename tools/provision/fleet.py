"""Start, stop, and disturb the servers of one directory.

Every change goes through the state file; whatever an interrupted command has left, the next one
finds there.
"""

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from provision import packages, ports, postgres, processes, site
from provision.account import Account, unprivileged
from provision.errors import UnavailableError
from provision.processes import Identity
from provision.recipes import RECIPES, Recipe, port_offset
from provision.state import ProcessRecord, ServerRecord, StateFile

STOP_TIMEOUT_S = 15.0
DIRECTORY_VARIABLE = "PYNCETTE_TEST_SERVERS_DIR"
SYSTEM_CACHE = Path("/var/cache/pyncette-servers")


@dataclass
class Outcome:
    """What `Fleet.start` did.

    Attributes:
        started: servers that did not run before.
        failures: why the others could not be started, by name.
    """

    started: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def cache_directory(environment: Mapping[str, str], account: Account) -> Path:
    """Where downloads go: the user's cache, or a system-wide one where servers cannot read that."""
    base = environment.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    personal = Path(base) / "pyncette-servers"
    return personal if account.can_reach(personal) else SYSTEM_CACHE


def with_upstreams(names: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """Add the servers that others stand in front of, and leave out those with a URL given."""
    wanted: list[str] = []
    for name in names:
        if RECIPES[name].variable in given:
            continue
        for one in (RECIPES[name].upstream, name):
            if one is not None and one not in wanted and RECIPES[one].variable not in given:
                wanted.append(one)
    return wanted


class Fleet:
    """The servers of one directory."""

    def __init__(
        self, directory: Path, environment: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        """Args:
        directory: for state and data.
        environment: the caller's; URLs in it take the place of servers.
        say: prints one line of progress.
        """
        self.state = StateFile(directory)
        self.aborted = threading.Event()
        self._given = {
            recipe.variable: environment[recipe.variable]
            for recipe in RECIPES.values()
            if environment.get(recipe.variable)
        }
        self._environment = environment
        self._say = say
        self._account: Account | None = None
        self._pool: site.PortPool | None = None

    # Reading

    def given_url(self, name: str) -> str | None:
        """The URL that the environment gives for a server, None when we may start it."""
        return self._given.get(RECIPES[name].variable)

    def variables(self) -> dict[str, str]:
        """What tests need in their environment: URLs given or running, and our directory."""
        found = dict(self._given)
        for record in self.state.read().servers.values():
            if record.condition in ("running", "paused"):
                found.setdefault(record.variable, record.url)
        if found:
            found[DIRECTORY_VARIABLE] = str(self.state.directory)
        return found

    # Starting

    def start(self, names: Sequence[str], holder: Identity) -> Outcome:
        """Start what does not run yet, all at once, and wait until everything serves.

        Args:
            names: servers; those with a URL in the environment are left out.
            holder: the process that needs them, until it calls `release` or `keep`.
        """
        outcome = Outcome()
        with self.state.exclusive(self._waiting):
            wanted = with_upstreams(names, self._given)
            try:
                self._account = unprivileged()
            except UnavailableError as error:
                outcome.failures = {name: str(error) for name in wanted}
                return outcome
            self._claim_ports()
            self._install_packages(wanted, outcome)
            self._start_all(wanted, outcome, holder)
        return outcome

    def _waiting(self) -> None:
        self._say("another command works in this directory, waiting for it")

    def _claim_ports(self) -> None:
        servers = self.state.read().servers.values()
        taken = [process.port for server in servers for process in server.processes]
        self._pool = site.PortPool(taken)

    def _install_packages(self, wanted: Sequence[str], outcome: Outcome) -> None:
        missing: dict[str, list[str]] = {}
        for name in wanted:
            needed = RECIPES[name].packages
            absent = {
                package
                for program, package in needed.items()
                if packages.find_program(program) is None
            }
            if absent:
                missing[name] = sorted(absent)
        if not missing:
            return
        everything = sorted({package for absent in missing.values() for package in absent})
        try:
            self._say(f"installing {' '.join(everything)}")
            packages.apt_install(everything)
        except UnavailableError:
            # One package that cannot be had must not take the other servers along.
            for name, own in missing.items():
                try:
                    packages.apt_install(own)
                except UnavailableError as error:
                    outcome.failures[name] = str(error)

    def _start_all(self, wanted: Sequence[str], outcome: Outcome, holder: Identity) -> None:
        futures: dict[str, Future[bool]] = {}

        def work(name: str) -> bool:
            upstream = RECIPES[name].upstream
            if upstream in futures:
                futures[upstream].result()
            return self._start_one(name, RECIPES[name], holder)

        with ThreadPoolExecutor(max_workers=len(RECIPES)) as pool:
            try:
                for name in wanted:
                    if name not in outcome.failures:
                        futures[name] = pool.submit(work, name)
                for name, future in futures.items():
                    try:
                        if future.result():
                            outcome.started.append(name)
                    except UnavailableError as error:
                        outcome.failures[name] = str(error)
            except BaseException:
                self.aborted.set()
                raise

    def _start_one(self, name: str, recipe: Recipe, holder: Identity) -> bool:
        began = time.monotonic()
        record = self.state.read().servers.get(name)
        fresh = record is None or not record.complete
        if record is not None and not record.complete:
            self._end(name, record)
        if fresh:
            self._create(name, recipe, holder)
        else:
            fresh = self._revive(name, record.processes if record else [])
            self._hold(name, holder)
        record = self.state.read().servers[name]
        if fresh:
            where = ", ".join(str(process.port) for process in record.processes)
            took = time.monotonic() - began
            self._say(f"{name}: {record.version} on port {where}, started in {took:.1f} s")
        return fresh

    def _create(self, name: str, recipe: Recipe, holder: Identity) -> None:
        assert self._account is not None
        assert self._pool is not None
        log_dir = self.state.directory / "logs" / name
        site.remove_tree(log_dir)
        log_dir.mkdir(parents=True)
        data_dir = self._data_root(self._account) / name
        site.remove_tree(data_dir)
        data_dir.mkdir(mode=0o700, parents=True)
        self._account.own(data_dir)
        with self.state.change() as state:
            state.servers[name] = ServerRecord(
                recipe.variable, "", "", str(data_dir), holders=[holder]
            )
        upstream = recipe.upstream
        place = site.Site(
            name=name,
            data_dir=data_dir,
            log_dir=log_dir,
            cache=cache_directory(self._environment, self._account),
            account=self._account,
            state=self.state,
            port_pool=self._pool,
            first_port=ports.first_port(self.state.directory) + port_offset(name),
            aborted=self.aborted,
            upstream_url=self._url(upstream) if upstream else "",
        )
        try:
            recipe.create(place)
        except BaseException:
            # Logs stay, for they say why.
            self._end(name, self.state.read().servers[name], keep_logs=True)
            raise
        with self.state.change() as state:
            state.servers[name].complete = True

    def _url(self, name: str) -> str:
        given = self.given_url(name)
        if given is not None:
            return given
        return self.state.read().servers[name].url

    def _data_root(self, account: Account) -> Path:
        with self.state.change() as state:
            inside = self.state.directory / "data"
            if state.data_root is None and not account.can_reach(inside):
                digest = hashlib.sha256(str(self.state.directory).encode()).hexdigest()[:8]
                prefix = f"pyncette-servers-{digest}-"
                state.data_root = tempfile.mkdtemp(prefix=prefix, dir="/var/tmp")
                os.chmod(state.data_root, 0o711)
            return Path(state.data_root) if state.data_root else inside

    def _revive(self, name: str, members: Sequence[ProcessRecord]) -> bool:
        """Start again what has ended, wake what is paused; False when all was well."""
        dead = [member for member in members if not processes.is_alive(member.identity)]
        paused = [member for member in members if processes.is_paused(member.identity)]
        for member in paused:
            processes.resume(member.identity)
        self._launch(name, dead)
        for member in members:
            site.await_ready(member, self.aborted)
        return bool(dead or paused)

    def _launch(self, name: str, members: Sequence[ProcessRecord]) -> None:
        account = self._account or unprivileged()
        for member in members:
            postgres.allow_restart(Path(member.data_dir))
            identity = site.launch(member, account)
            member.pid, member.started = identity.pid, identity.started
            with self.state.change() as state:
                for known in state.servers[name].processes:
                    if known.name == member.name:
                        known.pid, known.started = identity.pid, identity.started

    def _hold(self, name: str, holder: Identity) -> None:
        with self.state.change() as state:
            holders = state.servers[name].holders
            if holders is not None:
                holders.append(holder)

    def keep(self, holder: Identity) -> None:
        """Let the servers that the holder needs run on until `stop`."""
        with self.state.exclusive(self._waiting), self.state.change() as state:
            for record in state.servers.values():
                if record.holders is not None and holder in record.holders:
                    record.holders = None

    # Stopping

    def stop(self, names: Sequence[str]) -> list[str]:
        """End servers and remove all that they left; returns those that were there."""
        if not self.state.path.exists():
            return []
        with self.state.exclusive(self._waiting):
            return self._stop_all(names)

    def release(self, holder: Identity) -> list[str]:
        """Stop the servers that only this holder still needs."""
        with self.state.exclusive(self._waiting):
            unused = []
            with self.state.change() as state:
                for name, record in state.servers.items():
                    if record.holders is None or holder not in record.holders:
                        continue
                    record.holders = [
                        other
                        for other in record.holders
                        if other != holder and processes.is_alive(other)
                    ]
                    if not record.holders:
                        unused.append(name)
            return self._stop_all(unused)

    def _stop_all(self, names: Sequence[str]) -> list[str]:
        servers = self.state.read().servers
        there = [name for name in servers if name in names]
        if there:
            with ThreadPoolExecutor(max_workers=len(there)) as pool:
                list(pool.map(lambda name: self._end(name, servers[name]), there))
        if not self.state.read().servers:
            self._clear()
        return there

    def _end(self, name: str, record: ServerRecord, keep_logs: bool = False) -> None:
        """Stop whatever runs of a server, then forget it and its data."""
        self._stop_processes(record.processes)
        for member in record.processes:
            postgres.release_shared_memory(Path(member.data_dir))
        site.remove_tree(Path(record.data_dir))
        if not keep_logs:
            site.remove_tree(self.state.directory / "logs" / name)
        with self.state.change() as state:
            state.servers.pop(name, None)

    def _stop_processes(self, members: Sequence[ProcessRecord]) -> None:
        if not members:
            return
        # Together, not in turn: a master waits for its replicas, sentinels would fail over.
        with ThreadPoolExecutor(max_workers=len(members)) as pool:
            list(
                pool.map(
                    lambda one: processes.stop(one.identity, one.signal, STOP_TIMEOUT_S), members
                )
            )

    def _clear(self) -> None:
        """Remove what is ours in the directory, and it itself if nothing else is in it."""
        data_root = self.state.read().data_root
        if data_root is not None:
            site.remove_tree(Path(data_root))
        site.remove_tree(self.state.directory / "data")
        site.remove_tree(self.state.directory / "logs")
        self.state.remove()

    # Disturbing

    def members(self, selector: str) -> tuple[str, list[ProcessRecord]]:
        """The processes that `NAME` or `NAME/PROCESS` means.

        Raises:
            UnavailableError: no such server runs here, or it has no such process.
        """
        name, _, process = selector.partition("/")
        record = self.state.read().servers.get(name)
        if record is None:
            raise UnavailableError(f"{name} was not started in {self.state.directory}")
        found = [one for one in record.processes if process in ("", one.name)]
        if not found:
            known = ", ".join(one.name for one in record.processes)
            raise UnavailableError(f"{name} has no process {process!r}, it has {known}")
        return name, found

    def restart(self, selector: str) -> None:
        """End a server in order and start it again, on its ports, with its data."""
        with self.state.exclusive(self._waiting):
            name, members = self.members(selector)
            self._stop_processes(members)
            self._launch(name, members)
            for member in members:
                site.await_ready(member, self.aborted)

    def disturb(self, selector: str, action: Callable[[Identity], None]) -> None:
        """Do to each process of a server what `action` does: kill, pause or resume it."""
        with self.state.exclusive(self._waiting):
            for member in self.members(selector)[1]:
                action(member.identity)
