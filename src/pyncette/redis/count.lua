-- How many records of a group match: see pyncette.store.Store.count.
--
-- KEYS  The sorted set of the group's keys, the hash of its records.
-- ARGV  The range of keys (lexical, both ends); how many records to count, and how many to examine;
--       the instant before which they must be due (""); "1" if states follow; the states.
-- Returns how many match, and 1 if more may follow.

-- The parts of a value: version, instant, state, unfinished attempts. As in claim.lua, an invalid
-- value is a record that is parked.
local HEAD = '^([1-9]%d*)%z(%-?%d*)%z(%l+)%z(%d+)%z[^%z]*%z'
-- These are also in claim.lua, scan.lua, write.lua and layout.py.
local VERSION_MAX, DUE_MIN, DUE_MAX = 9007199254740000, -62135596800000000, 8993721599999999
local CHUNK = 250
local first, last, limit, examine = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local before = ARGV[5]
local states
if ARGV[6] == '1' then
  states = {}
  for at = 7, #ARGV do states[ARGV[at]] = true end
end

local found = 0
while examine > 0 do
  local count = math.min(CHUNK, examine)
  local keys = redis.call('ZRANGEBYLEX', KEYS[1], first, last, 'LIMIT', 0, count + 1)
  local more = #keys > count
  if more then keys[#keys] = nil end
  if #keys == 0 then return {found, 0} end
  local values = redis.call('HMGET', KEYS[2], unpack(keys))
  for number = 1, #keys do
    local value = values[number]
    if value then
      local version, due, state, attempts = string.match(value, HEAD)
      local at = tonumber(due)
      if not version or #version > 16 or #due > 18 or #attempts > 9
        or tonumber(version) > VERSION_MAX
        or (due ~= '' and not (at and at >= DUE_MIN and at <= DUE_MAX)) then
        at, state = nil, 'parked'
      end
      if (not states or states[state]) and (before == '' or (at and at < tonumber(before))) then
        if found == limit then return {found, 1} end
        found = found + 1
      end
    end
  end
  if not more then return {found, 0} end
  first = '(' .. keys[#keys]
  examine = examine - count
end
return {found, 1}
