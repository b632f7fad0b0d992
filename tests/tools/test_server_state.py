"""What tools/servers decides and remembers: ports, mirrors, the list, the state file."""

import json
import socket
import threading
from pathlib import Path

import pytest
from provision import ports
from provision.account import Account
from provision.errors import UnavailableError
from provision.fleet import SYSTEM_CACHE, Fleet, cache_directory, with_upstreams
from provision.packages import PUBLIC_MIRROR, apt_install, pick_mirror
from provision.processes import Identity
from provision.recipes import RECIPES, port_offset
from provision.state import ProcessRecord, ServerRecord, State, StateFile, decode, encode

NOBODY = Account(uid=65_534, gid=65_534)


def a_process(pid: int = 1, started: str = "never") -> ProcessRecord:
    return ProcessRecord("main", pid, started, 20_000, ["x"], "/d", "/l", "redis", "SIGTERM")


def a_server(**changes: object) -> ServerRecord:
    values: dict[str, object] = {"complete": True, "processes": [a_process()], **changes}
    return ServerRecord("PYNCETTE_TEST_REDIS_URL", "redis://", "7.0", "/d", **values)  # type: ignore[arg-type]


class TestPorts:
    def test_a_directory_always_gets_the_same_ports(self) -> None:
        assert ports.first_port(Path("/a")) == ports.first_port(Path("/a"))

    def test_blocks_lie_below_the_ports_of_outgoing_connections(self) -> None:
        firsts = [ports.first_port(Path(f"/checkout/{number}")) for number in range(500)]
        assert min(firsts) >= ports.FIRST
        assert max(firsts) + ports.BLOCK - 1 <= ports.LAST
        assert len(set(firsts)) > 200

    def test_all_servers_fit_into_one_block(self) -> None:
        last = list(RECIPES)[-1]
        assert port_offset(last) + RECIPES[last].ports <= ports.BLOCK

    def test_no_two_servers_look_for_ports_at_the_same_place(self) -> None:
        wanted = [
            port_offset(name) + number
            for name, recipe in RECIPES.items()
            for number in range(recipe.ports)
        ]
        assert len(wanted) == len(set(wanted))

    def test_ports_that_are_promised_or_in_use_are_passed_over(self) -> None:
        chosen = ports.choose(20_000, taken={20_000}, free=lambda port: port != 20_001)
        assert chosen == 20_002

    def test_the_search_goes_on_at_the_start_of_the_range(self) -> None:
        assert ports.choose(ports.LAST, taken={ports.LAST}, free=lambda _: True) == ports.FIRST

    def test_a_full_range_is_an_error_not_an_endless_search(self) -> None:
        with pytest.raises(RuntimeError, match="no free port"):
            ports.choose(ports.FIRST, taken=(), free=lambda _: False)

    def test_a_port_with_a_listener_is_not_free(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            assert not ports.is_free(listener.getsockname()[1])


class TestMirror:
    def test_the_main_archive_is_told_from_the_security_archive_by_its_label(self) -> None:
        lines = "http://security/|bookworm|Debian|Debian-Security\nhttp://mine/debian/|stable|Debian|Debian"
        assert pick_mirror(lines, "bookworm") == "http://mine/debian"

    def test_lists_that_were_never_fetched_are_told_by_their_release(self) -> None:
        lines = (
            "http://other/|nodistro|$(ORIGIN)|$(LABEL)\nhttp://mine/|bookworm|$(ORIGIN)|$(LABEL)"
        )
        assert pick_mirror(lines, "bookworm") == "http://mine"

    def test_a_machine_without_a_debian_mirror_gets_the_public_one(self) -> None:
        assert pick_mirror("", "bookworm") == PUBLIC_MIRROR


class TestList:
    def test_a_pooler_brings_the_server_behind_it_and_first(self) -> None:
        assert with_upstreams(["pgbouncer", "postgres"], {}) == ["postgres", "pgbouncer"]

    def test_a_pooler_stands_in_front_of_a_server_that_is_given(self) -> None:
        given = {"PYNCETTE_TEST_POSTGRES_URL": "postgresql://elsewhere"}
        assert with_upstreams(["pgbouncer"], given) == ["pgbouncer"]

    def test_a_pooler_that_is_given_needs_no_server(self) -> None:
        assert with_upstreams(["pgbouncer"], {"PYNCETTE_TEST_PGBOUNCER_URL": "x"}) == []

    def test_a_missing_package_names_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
        with pytest.raises(UnavailableError, match="as root: apt-get install redis-server"):
            apt_install(["redis-server"])


class TestPlaces:
    def test_a_directory_below_a_private_one_cannot_be_reached(self, tmp_path: Path) -> None:
        private = tmp_path / "private"
        private.mkdir(mode=0o700)
        assert not NOBODY.can_reach(private / "not" / "yet" / "there")
        assert Account().can_reach(private)

    def test_downloads_go_where_servers_can_read_them(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o700)
        environment = {"XDG_CACHE_HOME": str(tmp_path)}
        assert cache_directory(environment, Account()) == tmp_path / "pyncette-servers"
        assert cache_directory(environment, NOBODY) == SYSTEM_CACHE


class TestState:
    def test_what_is_written_is_read_back(self) -> None:
        state = State("/data", {"redis": a_server(holders=[Identity(5, "b:6")]), "x": a_server()})
        assert decode(encode(state)) == state

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 0, "servers": {}}'])
    def test_a_state_file_of_another_layout_is_refused(self, text: str) -> None:
        with pytest.raises(UnavailableError, match="state file cannot be read"):
            decode(text)

    def test_the_file_shows_pid_port_and_data_directory(self, tmp_path: Path) -> None:
        file = StateFile(tmp_path)
        with file.change() as state:
            state.servers["redis"] = a_server()
        (process,) = json.loads(file.path.read_text())["servers"]["redis"]["processes"]
        assert (process["pid"], process["port"], process["data_dir"]) == (1, 20_000, "/d")

    def test_a_server_whose_processes_have_ended_is_down(self) -> None:
        assert a_server().condition == "down"

    def test_removing_the_state_leaves_no_directory(self, tmp_path: Path) -> None:
        file = StateFile(tmp_path / "servers")
        with file.exclusive(lambda: None):
            with file.change():
                pass
            file.remove()
        assert not file.directory.exists()

    def test_a_waiter_whose_lock_file_was_removed_locks_the_one_that_others_see(
        self, tmp_path: Path
    ) -> None:
        file = StateFile(tmp_path)
        waits, entered = threading.Event(), threading.Event()

        def enter() -> None:
            with StateFile(tmp_path).exclusive(waits.set):
                if (tmp_path / "lock").exists():
                    entered.set()

        other = threading.Thread(target=enter, daemon=True)
        with file.exclusive(lambda: None):
            other.start()
            assert waits.wait(30)
            assert not entered.is_set()
            file.remove()
        other.join(30)
        assert entered.is_set()

    def test_stop_in_a_directory_that_was_never_used_makes_nothing(self, tmp_path: Path) -> None:
        directory = tmp_path / "servers"
        assert Fleet(directory, {}, print).stop(list(RECIPES)) == []
        assert not directory.exists()

    def test_a_server_whose_set_up_was_interrupted_does_not_count_as_running(self) -> None:
        assert a_server(complete=False).condition == "unfinished"
