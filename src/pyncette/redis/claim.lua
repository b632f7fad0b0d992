-- Takes the records that are due: see pyncette.store.Store.claim.
--
-- KEYS  For each group: the sorted set of its due records, the hash of its records, the sorted set
--       of its names.
-- ARGV  now; token; limit; what to return ("0": the records that are taken now; "1": first those
--       that the token already holds, then these; "2": only those that it holds); "1" if only
--       records are due that are due by the server's clock, too; the maximum unfinished attempts
--       of a record that is taken ("": any number); how many lost leases follow.
--       For each lost lease: the number of its group, its key ("": any in the group), its end, its
--       token, the instant at which it is to end instead.
--       For each source: the number of its group, the end of its lease, "before", its share, its
--       key ("": the source is the group).
-- Returns the soonest instant of each source, and for each record: group number, key, value. If a key
-- of some groups is of a wrong type, also the numbers of these groups, which are left out.
--
-- Instants are passed as text. They are compared and added as numbers, which are exact up to 2^53.
-- They are always formatted with %.0f, because tostring and cjson lose digits.

-- The parts of a value: version, instant, state, unfinished attempts, token, and where its progress
-- begins.
local HEAD = '^([1-9]%d*)%z(%-?%d*)%z(%l+)%z(%d+)%z([^%z]*)%z()'
-- These are also in write.lua, scan.lua and layout.py.
local VERSION_MAX, DUE_MIN, DUE_MAX = 9007199254740000, -62135596800000000, 8993721599999999
local ATTEMPTS_MAX = 999999999
local EXACT = 9007199254740992
local CHUNK = 1000
-- The states that are no part of an ordinary run, as in pyncette.store.rare.
local RARE = {finished = true, parked = true, paused = true, retrying = true}
-- How many records of a group, and of all groups, are examined besides those that are taken, if the
-- first ones may not be taken. Twenty of them take about a tenth of a millisecond.
local SKIPPED_MAX, SKIPPED_OF_ALL_MAX = 1000, 4000
-- The part of SKIPPED_MAX that is kept for records far behind the first ones.
local BEHIND = 250

local now, token, left = ARGV[1], ARGV[2], tonumber(ARGV[3])
local repeated, takes = ARGV[4] ~= '0', ARGV[4] ~= '2'
local instant = tonumber(now)
local attempts_max = tonumber(ARGV[6])
local bound, bound_text
if ARGV[5] == '1' then
  local time = redis.call('TIME')
  bound = tonumber(time[1]) * 1000000 + tonumber(time[2])
  bound_text = string.format('%.0f', bound)
end

-- Reads a value; its version is a number. If the value was edited so that it is invalid, its text
-- is returned as the schedule of a record, so that the worker finds it unreadable and parks it.
local function parsed(value, otherwise)
  local version, due, state, attempts, holder, rest = string.match(value, HEAD)
  if version and #version <= 16 and #due <= 18 and #attempts <= 9 then
    local number, at = tonumber(version), tonumber(due)
    if number <= VERSION_MAX and (due == '' or (at and at >= DUE_MIN and at <= DUE_MAX)) then
      return number, due, attempts, holder, string.sub(value, rest), at, state
    end
  end
  return 1, otherwise, '0', '-', '\0' .. string.gsub(value, '%z', ' ') .. '\0', tonumber(otherwise)
end

-- Whether one instant is at or before another. Rounding keeps the order, so the texts are compared
-- only if both round to the same number. Such numbers are negative: the longer text is earlier.
local function at_most(one, other)
  local a, b = tonumber(one), tonumber(other)
  if a ~= b then return a < b end
  if a >= -EXACT then return true end
  return #one > #other or (#one == #other and one >= other)
end

-- unpack() accepts only some thousands of values.
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

-- The groups of which a key is no sorted set or no hash. They are left out, so that one of them does
-- not stop all others.
local broken
local function guarded(group, action, ...)
  if broken and broken[group] then return end
  local done, reply = pcall(action, ...)
  if done then return reply end
  local text = type(reply) == 'table' and reply.err or tostring(reply)
  if not string.find(text, 'WRONGTYPE', 1, true) then error(reply, 0) end
  broken = broken or {}
  broken[group] = true
end

-- The records that are taken are written a thousand at a time. The sorted sets are written first: if
-- one is none, nothing is written to the hash. (The hash was read before.)
local pending = {}
local function flush(group)
  local taken = pending[group]
  if not taken then return end
  pending[group] = nil
  if #taken.rare > 0 then redis.call('ZREM', KEYS[3 * group], unpack(taken.rare)) end
  redis.call('ZADD', KEYS[3 * group - 2], unpack(taken.scores))
  redis.call('HSET', KEYS[3 * group - 1], unpack(taken.values))
end

local function take(source, key, version, attempts, rest, state)
  local next_version = version + 1
  if next_version <= instant then
    version = now
  else
    version = string.format('%.0f', next_version)
  end
  if attempts == '0' then
    attempts = '1'
  else
    attempts = string.format('%.0f', math.min(tonumber(attempts) + 1, ATTEMPTS_MAX))
  end
  local value = version .. source.running .. attempts .. '\0' .. token .. '\0' .. rest
  local taken = pending[source.group]
  if not taken then
    taken = {values = {}, scores = {}, rare = {}, length = 0}
    pending[source.group] = taken
  end
  local at = taken.length
  taken.values[at + 1], taken.values[at + 2] = key, value
  taken.scores[at + 1], taken.scores[at + 2] = source.lease_end, key
  taken.length = at + 2
  if RARE[state] then
    taken.rare[#taken.rare + 1] = state .. ':' .. key
  elseif not state then
    -- The value is invalid.
    for rare in pairs(RARE) do taken.rare[#taken.rare + 1] = rare .. ':' .. key end
  end
  if at + 2 >= 2 * CHUNK then flush(source.group) end
  keep(source, key, value)
end

-- Corrects the index entry of a record, if one or the other was edited by hand.
local function mend(source, key, value, due)
  if not value or due == '' then
    redis.call('ZREM', KEYS[3 * source.group - 2], key)
  else
    redis.call('ZADD', KEYS[3 * source.group - 2], due, key)
  end
end

-- The records of a group whose instants in the index lie in a range.
local function ranged(source, first, last, offset, count)
  local keys = redis.call('ZRANGEBYSCORE', KEYS[3 * source.group - 2], first, last,
    'LIMIT', offset, count)
  return keys, values_of(KEYS[3 * source.group - 1], keys)
end

-- Whether a record may be taken by its number of unfinished attempts.
local function is_allowed(attempts, more)
  return not attempts_max or tonumber(attempts) <= attempts_max + more
end

local function held(source, key, value)
  if not value or source.room == 0 or left <= 0 then return end
  local _, due, attempts, holder = parsed(value, '')
  -- Its claim counted one attempt.
  if due == source.lease_end and holder == token and is_allowed(attempts, 1) then
    keep(source, key, value)
  end
end

-- Ends a lease whose holder never got the answer, as if the claim had not been made.
local function release(lost, key, value)
  if not value then return end
  local version, due, attempts, holder, rest = parsed(value, '')
  if due ~= lost.lease_end or holder ~= lost.token then return end
  local next_version = math.max(version + 1, instant)
  attempts = string.format('%.0f', math.max(tonumber(attempts) - 1, 0))
  redis.call('ZADD', KEYS[3 * lost.group - 2], lost.due, key)
  redis.call('HSET', KEYS[3 * lost.group - 1], key, string.format('%.0f', next_version) .. '\0'
    .. lost.due .. '\0running\0' .. attempts .. '\0-\0' .. rest)
end

local first_source = 8 + 5 * tonumber(ARGV[7])
for at = 8, first_source - 1, 5 do
  local lost = {group = tonumber(ARGV[at]), lease_end = ARGV[at + 2], token = ARGV[at + 3],
    due = ARGV[at + 4]}
  guarded(lost.group, function()
    if ARGV[at + 1] ~= '' then
      release(lost, ARGV[at + 1], redis.call('HGET', KEYS[3 * lost.group - 1], ARGV[at + 1]))
    else
      -- Few leases of other claims end at the same instant, so one read is enough.
      local keys, values = ranged(lost, lost.lease_end, lost.lease_end, 0, 4 * CHUNK)
      for number, key in ipairs(keys) do release(lost, key, values[number]) end
    end
  end)
end

-- The sources, and the records of those that are keys, read together.
local sources, keyed = {}, {}
for at = first_source, #ARGV, 5 do
  local source = {group = tonumber(ARGV[at]), lease_end = ARGV[at + 1], before = ARGV[at + 2],
    room = tonumber(ARGV[at + 3]), key = ARGV[at + 4]}
  source.latest = tonumber(source.before)
  if bound and bound < source.latest then source.latest, source.before = bound, bound_text end
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
  local values = guarded(group, values_of, KEYS[3 * group - 1], asked.keys) or {}
  for number, source in ipairs(asked.sources) do source.value = values[number] end
end

local function held_of(source)
  local offset = 0
  while source.room > 0 and left > 0 do
    local keys, values = ranged(source, source.lease_end, source.lease_end, offset, CHUNK)
    for number, key in ipairs(keys) do held(source, key, values[number]) end
    if #keys < CHUNK then return end
    offset = offset + CHUNK
  end
end

if repeated then
  for _, source in ipairs(sources) do
    if source.key ~= '' then
      held(source, source.key, source.value)
    else
      guarded(source.group, held_of, source)
    end
  end
end

-- Takes due records of a group, soonest first. Records that may not be taken are skipped, in growing
-- steps up to a maximum. If all must be skipped, records much further behind are examined, at
-- another place in each claim, so that every record is found in the end.
local skipped_of_all = 0
local function take_from(source)
  local offset, skipped, mended, count = 0, 0, 0, nil
  local behind = false
  while true do
    local room = math.min(source.room, left)
    if room <= 0 then return end
    count = count and math.min(2 * count, CHUNK) or room
    if skipped > 0 then
      local most = behind and SKIPPED_MAX or SKIPPED_MAX - BEHIND
      count = math.min(count, most - skipped, SKIPPED_OF_ALL_MAX - skipped_of_all)
      if count <= 0 then
        if behind or skipped_of_all >= SKIPPED_OF_ALL_MAX then return end
        behind = true
        count = BEHIND
        local further = redis.call('ZCOUNT', KEYS[3 * source.group - 2], '-inf', source.before)
          - offset
        -- So that each record is found equally often, including the first and the last ones.
        if further > BEHIND then
          offset = offset + math.max(instant % (further + BEHIND) - BEHIND, 0)
        end
      end
    end
    local keys, values = ranged(source, '-inf', source.before, offset, count)
    local mends, skips = 0, 0
    for number, key in ipairs(keys) do
      local value = values[number]
      local version, due, attempts, rest, at, state, _
      if value then version, due, attempts, _, rest, at, state = parsed(value, source.before) end
      if not (at and (at < source.latest or at_most(due, source.before))) then
        mend(source, key, value, due)
        mends = mends + 1
      elseif attempts_max and tonumber(attempts) > attempts_max then
        skips = skips + 1
      elseif room > 0 then
        take(source, key, version, attempts, rest, state)
        room = room - 1
      end
    end
    flush(source.group)
    if #keys < count then return end
    -- Corrected entries of the index may leave room for more records.
    if mends > 0 then mended = mended + 1 end
    if skips == 0 and (mends == 0 or mended >= 3) then return end
    offset, skipped, skipped_of_all = offset + skips, skipped + skips, skipped_of_all + skips
  end
end

local function take_key(source)
  if not source.value then return end
  local version, due, attempts, _, rest, _, state = parsed(source.value, source.before)
  if due == '' then return end
  source.due = due
  if takes and source.room > 0 and left > 0 and at_most(due, source.before)
    and is_allowed(attempts, 0) then
    take(source, source.key, version, attempts, rest, state)
    source.due = source.lease_end
  end
end

for _, source in ipairs(sources) do
  if source.key ~= '' then
    guarded(source.group, take_key, source)
  elseif takes then
    guarded(source.group, take_from, source)
  end
end
for group in pairs(pending) do guarded(group, flush, group) end

-- The soonest instant in a group. Scores that are not instants are corrected first.
local function soonest(source)
  for _ = 1, 10 do
    local first = redis.call('ZRANGE', KEYS[3 * source.group - 2], 0, 0, 'WITHSCORES')
    local score = tonumber(first[2])
    if not score or (score >= -EXACT and score <= DUE_MAX) then return first[2] end
    local value = redis.call('HGET', KEYS[3 * source.group - 1], first[1])
    local due = ''
    if value then due = select(2, parsed(value, now)) end
    if tonumber(due) == score then return due end
    mend(source, first[1], value, due)
  end
  return now
end

local next_due = {}
for number, source in ipairs(sources) do
  local due = source.due
  if source.key == '' then due = guarded(source.group, soonest, source) end
  if broken and broken[source.group] then due = now end
  next_due[number] = due or false
end
if not broken then return {next_due, claimed} end

local sound, left_out = {}, {}
for at = 1, length, 3 do
  if not broken[claimed[at]] then
    for number = at, at + 2 do sound[#sound + 1] = claimed[number] end
  end
end
for group in pairs(broken) do left_out[#left_out + 1] = group end
return {next_due, sound, left_out}
