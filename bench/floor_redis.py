"""The floor of the store in Redis: the bare driver claims 100, settles 100, and nothing else.

One client of redis-py with hiredis, one connection, a sorted set of what comes due and a hash of
records. A claim and a settle are one Lua script each: a claim writes version and token, a settle
looks for them; no record is parsed in Python. What the whole scheduler reaches is judged against
it, in the same run:

    python bench/floor_redis.py redis://127.0.0.1:6379/0 [runs]
"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from typing import Any

from redis.asyncio import Redis

BATCH = 100
NOW = 1_764_000_000_000_000
LEASE = 60_000_000

_CLAIM = """
local keys = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #keys == 0 then return {} end
local values = redis.call('HMGET', KEYS[2], unpack(keys))
local scores, sets = {}, {}
for number, key in ipairs(keys) do
  values[number] = ARGV[4] .. string.match(values[number], '^%d+ %S+ (.*)$')
  scores[2 * number - 1], scores[2 * number] = ARGV[3], key
  sets[2 * number - 1], sets[2 * number] = key, values[number]
end
redis.call('ZADD', KEYS[1], unpack(scores))
redis.call('HSET', KEYS[2], unpack(sets))
return sets
"""
_SETTLE = """
local holder, keys = table.remove(ARGV, 1), {}
for number, value in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV))) do
  if value and string.sub(value, 1, #holder) == holder then keys[#keys + 1] = ARGV[number] end
end
redis.call('ZREM', KEYS[1], unpack(keys))
return redis.call('HDEL', KEYS[2], unpack(keys))
"""


async def floor(url: str, runs: int = 20_000) -> float:
    """Runs per second: so many due one-off records claimed and deleted, a hundred at a time.

    Args:
        url: Of a server; two keys that begin with ``pyncette-floor`` are used on it.
        runs: How many.
    """
    client: Any = Redis.from_url(url)
    keys = ["pyncette-floor:due", "pyncette-floor:records"]
    try:
        await client.delete(*keys)
        for first in range(0, runs, 1_000):
            numbers = range(first, min(first + 1_000, runs))
            names = {f"user-{number}": NOW - runs + number for number in numbers}
            await client.zadd(keys[0], names)
            values = dict.fromkeys(names, f'1 - 1 at {NOW} 1 {{"user":1}} 1 {NOW} 0000abcdef')
            await client.hset(keys[1], mapping=values)
        claim, settle = client.register_script(_CLAIM), client.register_script(_SETTLE)
        done = 0
        started = perf_counter()
        while done < runs:
            holder = f"{NOW} worker-{done} "
            claimed = (await claim(keys=keys, args=[NOW, BATCH, NOW + LEASE, holder]))[::2]
            assert await settle(keys=keys, args=[holder, *claimed]) == len(claimed) > 0
            done += len(claimed)
        return runs / (perf_counter() - started)
    finally:
        await client.delete(*keys)
        await client.aclose()


def main() -> None:
    """Prints three rounds."""
    url = sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379/0"
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    for _ in range(3):
        print(f"{asyncio.run(floor(url, runs)):>9,.0f} runs/s")


if __name__ == "__main__":
    main()
