-- Makes each change whose expectation holds: see pyncette.store.Store.write.
--
-- KEYS  For each group: the sorted set of its due records, the hash of its records, the sorted set
--       of its names.
-- ARGV  now; "1" if a record whose write is refused is written again unchanged.
--       For each write: the number of its group, its key, the expected version (0: there must be
--       no record, -1: any), the expected token ("": any), the kind of change, and its values:
--       "D" removes the record; "U" writes everything: the instant, the text before the token, the
--       text from the token on; "P" is a patch: the instant, the text before the token, the
--       progress; "p" is a patch without progress.
-- Returns for each write the new version, or the record that is there instead, or -1 if a key of its
-- group is of a wrong type, so that nothing of the group is written.
--
-- WAIT waits until replicas have the last write of its own connection. If a repeated write finds
-- that it was made before, perhaps on another connection, the record is written again unchanged, so
-- that WAIT includes it.

-- The parts of a value: version, instant, state, unfinished attempts, token, and where its progress
-- begins.
local HEAD = '^([1-9]%d*)%z(%-?%d*)%z(%l+)%z(%d+)%z([^%z]*)%z()'
-- These are also in claim.lua, scan.lua and layout.py.
local VERSION_MAX, DUE_MIN, DUE_MAX = 9007199254740000, -62135596800000000, 8993721599999999
local CHUNK = 1000
-- The states that are no part of an ordinary run, as in pyncette.store.rare.
local RARE = {finished = true, parked = true, paused = true, retrying = true}
local STRIDES = {D = 5, U = 8, P = 8, p = 7}
local now_text, touches = ARGV[1], ARGV[2] == '1'
local now = tonumber(now_text)

-- The records before any change: a batch contains no key twice.
local values, groups = {}, {}
local at = 3
while at <= #ARGV do
  local group = tonumber(ARGV[at])
  local asked = groups[group]
  if not asked then
    asked = {keys = {}, places = {}, length = 0}
    groups[group] = asked
  end
  local length = asked.length + 1
  asked.keys[length], asked.places[length], asked.length = ARGV[at + 1], at, length
  at = at + STRIDES[ARGV[at + 4]]
end

-- The groups of which a key is of a wrong type. Nothing of them is written, so that one of them does
-- not stop all others.
local broken
local function guarded(group, ...)
  if broken and broken[group] then return {} end
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then return redis.call(...) end
  broken = broken or {}
  broken[group] = true
  return {}
end

for group, asked in pairs(groups) do
  for first = 1, asked.length, CHUNK do
    local last = math.min(first + CHUNK - 1, asked.length)
    local found = guarded(group, 'HMGET', KEYS[3 * group - 1], unpack(asked.keys, first, last))
    for number = 1, #found do values[asked.places[first + number - 1]] = found[number] end
  end
end

-- As in claim.lua, an invalid value is a record of version 1 with nothing else.
local function parsed(value)
  local version, due, state, attempts, holder, rest = string.match(value, HEAD)
  if version and #version <= 16 and #due <= 18 and #attempts <= 9 then
    local number, at = tonumber(version), tonumber(due)
    if number <= VERSION_MAX and (due == '' or (at and at >= DUE_MIN and at <= DUE_MAX)) then
      return version, number, holder, rest, value, state
    end
  end
  return '1', 1, '-', 1, '\0' .. string.gsub(value, '%z', ' ') .. '\0'
end

local function listed(lists, group)
  local list = lists[group]
  if not list then
    list = {}
    lists[group] = list
  end
  return list
end

local sets, dues, named, gone, never, unnamed = {}, {}, {}, {}, {}, {}

-- Notes that a record leaves a state. That of an invalid value is not known.
local function leave(group, key, state, next_state)
  if state then
    if not RARE[state] then return end
    local list = listed(unnamed, group)
    list[#list + 1] = state .. ':' .. key
    return
  end
  local list = listed(unnamed, group)
  for rare in pairs(RARE) do
    if rare ~= next_state then list[#list + 1] = rare .. ':' .. key end
  end
end

local results, count = {}, 0
at = 3
while at <= #ARGV do
  local group, key, expect, holder = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local what = ARGV[at + 4]
  local value = values[at]
  local version, number, token, rest, whole, state = '0', 0, nil, nil, nil, nil
  if value then version, number, token, rest, whole, state = parsed(value) end
  local result
  if (expect ~= '-1' and expect ~= version) or (holder ~= '' and holder ~= token) then
    result = value
    if value and touches then guarded(group, 'HSET', KEYS[3 * group - 1], key, value) end
  elseif what == 'D' then
    result = 0
    if value then
      local list = listed(gone, group)
      list[#list + 1] = key
      list = listed(unnamed, group)
      list[#list + 1] = ':' .. key
      leave(group, key, state)
    end
  elseif not value and what ~= 'U' then
    result = 0
  else
    local due, head = ARGV[at + 5], ARGV[at + 6]
    local text = now_text
    result = number + 1
    if result <= now then result = now else text = string.format('%.0f', result) end
    local new = text .. '\0' .. due .. '\0' .. head .. '\0'
    if what == 'U' then
      new = new .. ARGV[at + 7]
    elseif what == 'P' then
      local behind = string.find(whole, '%z', rest) or #whole + 1
      new = new .. token .. '\0' .. ARGV[at + 7] .. string.sub(whole, behind)
    else
      new = new .. token .. '\0' .. string.sub(whole, rest)
    end
    local next_state = string.match(head, '^%l*')
    if RARE[next_state] then
      local list = listed(named, group)
      local length = #list
      list[length + 1], list[length + 2] = '0', next_state .. ':' .. key
    end
    if value and state ~= next_state then leave(group, key, state, next_state) end
    local list = listed(sets, group)
    local length = #list
    list[length + 1], list[length + 2] = key, new
    if due == '' then
      list = listed(never, group)
      list[#list + 1] = key
    else
      list = listed(dues, group)
      length = #list
      list[length + 1], list[length + 2] = due, key
    end
    if not value then
      list = listed(named, group)
      length = #list
      list[length + 1], list[length + 2] = '0', ':' .. key
    end
  end
  count = count + 1
  results[count] = result
  at = at + STRIDES[what]
end

local function call(command, lists, back)
  for group, list in pairs(lists) do
    for first = 1, #list, 2 * CHUNK do
      local last = math.min(first + 2 * CHUNK - 1, #list)
      guarded(group, command, KEYS[3 * group - back], unpack(list, first, last))
    end
  end
end
-- The hash last: it was read, so that writing it does not fail.
call('ZADD', dues, 2)
call('ZREM', never, 2)
call('ZADD', named, 0)
call('ZREM', unnamed, 0)
call('ZREM', gone, 2)
call('HSET', sets, 1)
call('HDEL', gone, 1)
if broken then
  at, count = 3, 0
  while at <= #ARGV do
    count = count + 1
    if broken[tonumber(ARGV[at])] then results[count] = -1 end
    at = at + STRIDES[ARGV[at + 4]]
  end
end
return results
