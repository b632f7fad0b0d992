"""The list of servers: what each needs, where its URL goes, who sets it up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from provision import dynamodb, mysql, postgres, redis
from provision.site import Site


@dataclass(frozen=True)
class Recipe:
    """How to get one server.

    Attributes:
        variable: the environment variable for its URL; when set, the server is not started.
        create: sets it up in an empty site, starts it, and waits until it serves.
        packages: the Debian package for each program that it needs and does not fetch itself.
        ports: how many it takes, so that no other server's are looked for there.
        upstream: the server that this one stands in front of.
    """

    variable: str
    create: Callable[[Site], None]
    packages: Mapping[str, str] = field(default_factory=dict)
    ports: int = 1
    upstream: str | None = None


REDIS = {"redis-server": "redis-server", "redis-cli": "redis-tools"}
POSTGRES = {"postgres": "postgresql", "initdb": "postgresql"}

RECIPES: dict[str, Recipe] = {
    "postgres": Recipe("PYNCETTE_TEST_POSTGRES_URL", postgres.create, POSTGRES),
    "pgbouncer": Recipe(
        "PYNCETTE_TEST_PGBOUNCER_URL",
        postgres.create_pgbouncer,
        {"pgbouncer": "pgbouncer"},
        upstream="postgres",
    ),
    "redis": Recipe("PYNCETTE_TEST_REDIS_URL", redis.create, REDIS),
    "redis-cluster": Recipe(
        "PYNCETTE_TEST_REDIS_CLUSTER_URL", redis.create_cluster, REDIS, ports=12
    ),
    "redis-sentinel": Recipe(
        "PYNCETTE_TEST_REDIS_SENTINEL_URL", redis.create_sentinel, REDIS, ports=5
    ),
    "valkey": Recipe("PYNCETTE_TEST_VALKEY_URL", redis.create_valkey),
    "mysql": Recipe("PYNCETTE_TEST_MYSQL_URL", mysql.create),
    "mariadb": Recipe(
        "PYNCETTE_TEST_MARIADB_URL",
        mysql.create_mariadb,
        {"mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"},
    ),
    "dynamodb": Recipe(
        "PYNCETTE_TEST_DYNAMODB_URL", dynamodb.create, {"java": "default-jre-headless"}
    ),
}


def port_offset(name: str) -> int:
    """Where a server's ports begin within its directory's block."""
    names = list(RECIPES)
    return sum(RECIPES[other].ports for other in names[: names.index(name)])
