-- Makes each change whose expectation holds: see pyncette.store.Store.write.
--
-- KEYS  of each group in turn: the sorted set of what comes due, the hash of its records, the
--       sorted set of its keys.
-- ARGV  now, "1" where what is refused is written again as it is; then of each write: the number
--       of its group, its key, the version expected (0: none may be there, -1: any), the token
--       expected ("": any), what to do, the instant, and the new texts.
--       What to do: "D" removes; "U" writes all texts; "P" those of a patch; "p" those of a patch
--       without progress.
-- Returns for each write the version that it made, or what is there instead.
--
-- WAIT waits for replicas to have what its connection wrote last. Where a repeated write finds
-- that it was made before, perhaps on another connection, writing that again makes WAIT mean it.
local VALUE = '^(%d+)%z(%-?%d*)%z(%l+)%z(%d+)%z([^%z]*)%z()([^%z]*)%z[^%z]*%z[^%z]*$'
local CHUNK = 1000
local now, touches = tonumber(ARGV[1]), ARGV[2] == '1'
local results = {}

-- The records before any change: no key stands twice in a batch.
local values, groups = {}, {}
for at = 3, #ARGV, 7 do
  local group = tonumber(ARGV[at])
  local asked = groups[group]
  if not asked then
    asked = {keys = {}, places = {}}
    groups[group] = asked
  end
  asked.keys[#asked.keys + 1] = ARGV[at + 1]
  asked.places[#asked.places + 1] = at
end
for group, asked in pairs(groups) do
  for first = 1, #asked.keys, CHUNK do
    local last = math.min(first + CHUNK - 1, #asked.keys)
    local chunk = redis.call('HMGET', KEYS[3 * group - 1], unpack(asked.keys, first, last))
    for number = 1, #chunk do values[asked.places[first + number - 1]] = chunk[number] end
  end
end

-- As in claim.lua: what is not one of our values is a record of version 1 that says nothing.
local function parsed(value)
  local version, due, _, starts, progress, rest, holder = string.match(value, VALUE)
  if version and #version <= 16 and #due <= 18 and due ~= '-' and #starts <= 9 then
    return version, progress, holder, string.sub(value, rest)
  end
  return '1', '', '-', '-\0' .. string.gsub(value, '%z', ' ') .. '\0'
end

local sets, dues, keys, gone, never = {}, {}, {}, {}, {}
local function add(lists, group, ...)
  local list = lists[group]
  if not list then
    list = {}
    lists[group] = list
  end
  for number = 1, select('#', ...) do list[#list + 1] = (select(number, ...)) end
end

for at = 3, #ARGV, 7 do
  local group, key, expect, holder = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local what, due, body = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
  local value = values[at]
  local version, progress, token, rest = '0', nil, nil, nil
  if value then version, progress, token, rest = parsed(value) end
  local result
  if (expect ~= '-1' and expect ~= version) or (holder ~= '' and holder ~= token) then
    result = value
    if value and touches then redis.call('HSET', KEYS[3 * group - 1], key, value) end
  elseif what == 'D' then
    result = 0
    if value then add(gone, group, key) end
  elseif not value and what ~= 'U' then
    result = 0
  else
    result = math.max(tonumber(version) + 1, now)
    local new = string.format('%.0f', result) .. '\0' .. due .. '\0' .. body
    if what == 'P' then
      new = new .. '\0' .. rest
    elseif what == 'p' then
      new = new .. '\0' .. progress .. '\0' .. rest
    end
    add(sets, group, key, new)
    if due == '' then add(never, group, key) else add(dues, group, due, key) end
    if not value then add(keys, group, '0', key) end
  end
  results[#results + 1] = result
end

local function call(command, lists, which)
  for group, list in pairs(lists) do
    for first = 1, #list, 2 * CHUNK do
      redis.call(command, KEYS[3 * group - which],
        unpack(list, first, math.min(first + 2 * CHUNK - 1, #list)))
    end
  end
end
call('HSET', sets, 1)
call('ZADD', dues, 2)
call('ZREM', never, 2)
call('ZADD', keys, 0)
call('HDEL', gone, 1)
call('ZREM', gone, 2)
call('ZREM', gone, 0)
return results
