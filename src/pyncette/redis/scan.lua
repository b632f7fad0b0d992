-- A page of a group in the order of its keys: see pyncette.store.Store.scan.
--
-- KEYS  the sorted set of the group's keys, the hash of its records.
-- ARGV  the range of keys (lexical, both ends), how many records to return and how many to look
--       at, the instant before which they have to come due (""), "1" where states follow, those.
-- Returns the last key looked at where there may be more, and of each record: key, value.
--
-- Not HSCAN, which repeats what it has returned when the hash is resized, and takes its count as a
-- hint.

-- Of a value: version, instant, state, unfinished attempts. As in claim.lua, what is not one of our
-- values is a record that is parked.
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
  -- One more than is looked at tells whether any follow.
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
