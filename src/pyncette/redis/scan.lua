-- A page of a group in the order of its keys, or how many records match: see scan and count of
-- pyncette.store.Store.
--
-- KEYS  The sorted set of the group's names, the hash of its records.
-- ARGV  "count" or ""; the range of keys (lexical, both ends; the second may be ""); how many records to return or count,
--       and how many to examine; the instant before which they must be due (""); "0": in any state,
--       "1": in one of the states that follow, "2": the same, and all of them are rare; the states.
-- Returns the last key that was examined, if there may be more, and for each record: key, value. If
-- the states are rare: this for each state. To count: whether there may be more, and the number of
-- records.
--
-- HSCAN is not used, because it may return an entry twice if the hash is resized, and takes its
-- count as a hint only.

-- The parts of a value: version, instant, state, unfinished attempts. As in claim.lua, an invalid
-- value is a record that is parked.
local HEAD = '^([1-9]%d*)%z(%-?%d*)%z(%l+)%z(%d+)%z[^%z]*%z'
-- These are also in claim.lua, write.lua and layout.py.
local VERSION_MAX, DUE_MIN, DUE_MAX = 9007199254740000, -62135596800000000, 8993721599999999
local CHUNK = 250
local counts, first_key, last_key = ARGV[1] == 'count', ARGV[2], ARGV[3]
local limit, examine_max, before = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]

-- Looks through a range: the key of a record is its name from the given place on.
local function look(first, last, from, states)
  local count, found, cursor, examine = 0, {}, false, examine_max
  while examine > 0 do
    local size = math.min(CHUNK, examine)
    -- One key more than is examined shows whether more keys follow.
    local keys = redis.call('ZRANGEBYLEX', KEYS[1], first, last, 'LIMIT', 0, size + 1)
    local more = #keys > size
    if more then keys[#keys] = nil end
    if #keys == 0 then return false, count, found end
    first = '(' .. keys[#keys]
    for number, name in ipairs(keys) do keys[number] = string.sub(name, from) end
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
        if count == limit then return cursor or (counts and ''), count, found end
        count = count + 1
        if not counts then found[2 * count - 1], found[2 * count] = key, value end
      end
      cursor = key
    end
    if not more then return false, count, found end
    examine = examine - size
  end
  return cursor, count, found
end

-- The names of all records begin with ":", those of rare states also with "state:".
local function look_for(state, states)
  local first = string.sub(first_key, 1, 1) .. state .. ':' .. string.sub(first_key, 2)
  -- ";" follows ":".
  local last = '(' .. state .. ';'
  if last_key ~= '' then last = '(' .. state .. ':' .. string.sub(last_key, 2) end
  if counts and state ~= '' and before == '' then
    return false, redis.call('ZLEXCOUNT', KEYS[1], first, last)
  end
  return look(first, last, #state + 2, states)
end

if ARGV[7] ~= '2' then
  local states
  if ARGV[7] == '1' then
    states = {}
    for at = 8, #ARGV do states[ARGV[at]] = true end
  end
  local cursor, count, found = look_for('', states)
  if counts then return {cursor, count} end
  return {cursor, found}
end

local pages, more, count = {}, false, 0
for at = 8, #ARGV do
  local state = ARGV[at]
  local cursor, matches, found = look_for(state, {[state] = true})
  pages[#pages + 1] = {cursor, found}
  more, count = more or cursor, count + matches
end
if not counts then return pages end
if count > limit then return {'', limit} end
return {more, count}
