-- Takes the records that are due: see pyncette.store.Store.claim.
--
-- KEYS  of each group in turn: the sorted set of what comes due, the hash of its records.
-- ARGV  now, token, limit, what to return ("0": what is taken now; "1": what the token holds from
--       before and then that; "2": only what it holds); then of each source: the number of its
--       group, the end of its lease, "before", its share, its key ("" where it is the group).
-- Returns the soonest instant of each source, and of each record: group number, key, value.
--
-- Instants come and go as text. As numbers they are compared and added to, and these are exact up
-- to 2^53; they are printed by %.0f alone, since tostring and cjson lose digits.

-- Of a value: version, instant, starts, token, and where its progress begins.
local HEAD = '^(%d+)%z(%-?%d*)%z%l+%z(%d+)%z([^%z]*)%z()'
local EXACT = 9007199254740992
local CHUNK = 1000
local now, token, left = ARGV[1], ARGV[2], tonumber(ARGV[3])
local repeated, takes = ARGV[4] ~= '0', ARGV[4] ~= '2'
local instant = tonumber(now)

-- What a value says. Where somebody edited it into something else, what is there stands as the
-- plan of a record, so that whoever reads it finds it unreadable, and parks it.
local function parsed(value, otherwise)
  local version, due, starts, holder, rest = string.match(value, HEAD)
  if version and #version <= 16 and #due <= 18 and due ~= '-' and #starts <= 9 then
    return version, due, starts, holder, string.sub(value, rest)
  end
  return '1', otherwise, '0', '-', '\0' .. string.gsub(value, '%z', ' ') .. '\0'
end

-- Whether one instant lies at or before another. Rounding keeps the order, so that only what
-- rounds to the same has to be looked at as text: longer means earlier, so far back.
local function at_most(one, other)
  local a, b = tonumber(one), tonumber(other)
  if a ~= b then return a < b end
  if a >= -EXACT then return true end
  return #one > #other or (#one == #other and one >= other)
end

-- unpack() holds no more than some thousands.
local function values_of(records, keys)
  if #keys == 0 then return keys end
  if #keys <= CHUNK then return redis.call('HMGET', records, unpack(keys)) end
  local values = {}
  for first = 1, #keys, CHUNK do
    local last = math.min(first + CHUNK - 1, #keys)
    for number, value in ipairs(redis.call('HMGET', records, unpack(keys, first, last))) do
      values[first + number - 1] = value
    end
  end
  return values
end

local claimed, length = {}, 0
local function keep(source, key, value)
  claimed[length + 1], claimed[length + 2], claimed[length + 3] = source.group, key, value
  length = length + 3
  left = left - 1
  source.room = source.room - 1
end

-- What is taken is written a thousand at a time.
local pending = {}
local function flush(group)
  local taken = pending[group]
  if not taken then return end
  redis.call('HSET', KEYS[2 * group], unpack(taken.values))
  redis.call('ZADD', KEYS[2 * group - 1], unpack(taken.scores))
  pending[group] = nil
end

local function take(source, key, version, starts, rest)
  local next_version = tonumber(version) + 1
  if next_version <= instant then
    version = now
  else
    version = string.format('%.0f', next_version)
  end
  starts = starts == '0' and '1' or string.format('%.0f', tonumber(starts) + 1)
  local value = version .. source.running .. starts .. '\0' .. token .. '\0' .. rest
  local taken = pending[source.group]
  if not taken then
    taken = {values = {}, scores = {}, length = 0}
    pending[source.group] = taken
  end
  local at = taken.length
  taken.values[at + 1], taken.values[at + 2] = key, value
  taken.scores[at + 1], taken.scores[at + 2] = source.lease_end, key
  taken.length = at + 2
  if at + 2 >= 2 * CHUNK then flush(source.group) end
  keep(source, key, value)
end

-- Puts right what the index says of a record, where somebody edited one or the other.
local function mend(source, key, value, due)
  if not value or due == '' then
    redis.call('ZREM', KEYS[2 * source.group - 1], key)
  else
    redis.call('ZADD', KEYS[2 * source.group - 1], due, key)
  end
end

-- The records of a group whose instants in the index lie in a range.
local function ranged(source, first, last, offset, count)
  local keys = redis.call('ZRANGEBYSCORE', KEYS[2 * source.group - 1], first, last,
    'LIMIT', offset, count)
  return keys, values_of(KEYS[2 * source.group], keys)
end

local function held(source, key, value)
  if not value or source.room == 0 or left <= 0 then return end
  local _, due, _, holder = parsed(value, '')
  if due == source.lease_end and holder == token then keep(source, key, value) end
end

-- The sources, and the records of those that are keys, read together.
local sources, keyed = {}, {}
for at = 5, #ARGV, 5 do
  local source = {group = tonumber(ARGV[at]), lease_end = ARGV[at + 1], before = ARGV[at + 2],
    room = tonumber(ARGV[at + 3]), key = ARGV[at + 4]}
  source.latest = tonumber(source.before)
  source.running = '\0' .. source.lease_end .. '\0running\0'
  sources[#sources + 1] = source
  if source.key ~= '' then
    local asked = keyed[source.group]
    if not asked then
      asked = {keys = {}, sources = {}}
      keyed[source.group] = asked
    end
    asked.keys[#asked.keys + 1] = source.key
    asked.sources[#asked.sources + 1] = source
  end
end
for group, asked in pairs(keyed) do
  local values = values_of(KEYS[2 * group], asked.keys)
  for number, source in ipairs(asked.sources) do source.value = values[number] end
end

if repeated then
  for _, source in ipairs(sources) do
    if source.key ~= '' then
      held(source, source.key, source.value)
    else
      local offset = 0
      while source.room > 0 and left > 0 do
        local keys, values = ranged(source, source.lease_end, source.lease_end, offset, CHUNK)
        for number, key in ipairs(keys) do held(source, key, values[number]) end
        if #keys < CHUNK then break end
        offset = offset + CHUNK
      end
    end
  end
end

for _, source in ipairs(sources) do
  if source.key ~= '' then
    if source.value then
      local version, due, starts, _, rest = parsed(source.value, now)
      if due ~= '' then
        source.due = due
        if takes and source.room > 0 and left > 0 and at_most(due, source.before) then
          take(source, source.key, version, starts, rest)
          source.due = source.lease_end
        end
      end
    end
  elseif takes then
    -- Entries of the index that had to be put right may leave room for more.
    for _ = 1, 3 do
      local room = math.min(source.room, left)
      if room <= 0 then break end
      local keys, values = ranged(source, '-inf', source.before, 0, room)
      local mends = 0
      for number, key in ipairs(keys) do
        local value = values[number]
        local version, due, starts, rest, _
        if value then version, due, starts, _, rest = parsed(value, source.before) end
        local at = value and tonumber(due)
        if at and (at < source.latest or at_most(due, source.before)) then
          take(source, key, version, starts, rest)
        else
          mend(source, key, value, due)
          mends = mends + 1
        end
      end
      flush(source.group)
      if mends == 0 or #keys < room then break end
    end
  end
end
for group in pairs(pending) do flush(group) end

local next_due = {}
for number, source in ipairs(sources) do
  local due = source.due
  if source.key == '' then
    local first = redis.call('ZRANGE', KEYS[2 * source.group - 1], 0, 0, 'WITHSCORES')
    due = first[2]
    if due and tonumber(due) < -EXACT then
      local value = redis.call('HGET', KEYS[2 * source.group], first[1])
      if value then due = select(2, parsed(value, due)) end
    end
  end
  next_due[number] = due or false
end
return {next_due, claimed}
