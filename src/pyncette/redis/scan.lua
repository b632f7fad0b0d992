-- A page of a group in the order of its keys: see pyncette.store.Store.scan.
--
-- KEYS  The sorted set of the group's keys, the hash of its records.
-- ARGV  The range of keys (lexical, both ends); how many records to return, and how many to
--       examine; the instant before which they must be due (""); "1" if states follow; the states.
-- Returns the last key that was examined, if there may be more, and for each record: key, value.
--
-- HSCAN is not used, because it may return an entry twice if the hash is resized, and takes its
-- count as a hint only.

-- The parts of a value: version, instant, state, unfinished attempts. As in claim.lua, an invalid
-- value is a record that is parked.
local HEAD = '^([1-9]%d*)%z(%-?%d*)%z(%l+)%z(%d+)%z[^%z]*%z'
-- These are also in claim.lua, write.lua and layout.py.
local VERSION_MAX, DUE_MIN, DUE_MAX = 9007199254740000, -62135596800000000, 8993721599999999
local CHUNK = 250
local first, last, limit, examine = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local before = ARGV[5]
local states
if ARGV[6] == '1' then
  states = {}
  for at = 7, #ARGV do states[ARGV[at]] = true end
end

local found, cursor = {}, false
while examine > 0 do
  local count = math.min(CHUNK, examine)
  -- One key more than is examined shows whether more keys follow.
  local keys = redis.call('ZRANGEBYLEX', KEYS[1], first, last, 'LIMIT', 0, count + 1)
  local more = #keys > count
  if more then keys[#keys] = nil end
  if #keys == 0 then return {false, found} end
  local values = redis.call('HMGET', KEYS[2], unpack(keys))
  for number, key in ipairs(keys) do
    local value = values[number]
    local wanted = value
    if value and (states or before ~= '') then
      local version, due, state, attempts = string.match(value, HEAD)
      local at = tonumber(due)
      if not version or #version > 16 or #due > 18 or #attempts > 9
        or tonumber(version) > VERSION_MAX
        or (due ~= '' and not (at and at >= DUE_MIN and at <= DUE_MAX)) then
        at, state = nil, 'parked'
      end
      wanted = (not states or states[state]) and
        (before == '' or (at and at < tonumber(before)))
    end
    if wanted then
      if #found == 2 * limit then return {cursor, found} end
      found[#found + 1], found[#found + 2] = key, value
    end
    cursor = key
  end
  if not more then return {false, found} end
  first = '(' .. cursor
  examine = examine - count
end
return {cursor, found}
