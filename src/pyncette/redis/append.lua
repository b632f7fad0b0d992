-- Adds a batch to one part of the run history; see pyncette.redis.history for the members.
-- KEYS: the sorted set of the part.
-- ARGV: the member that shows whether the batch is there; before which old ones of that kind are
-- removed, or nothing; the number of members; the members; then for each total its two prefixes and
-- its five numbers.
-- Returns 1; 0 if the batch was there already.

local key = KEYS[1]
local STEP = 500
local OLD_MAX = 100

if redis.call("ZADD", key, "NX", 0, ARGV[1]) == 0 then
    return 0
end
if ARGV[2] ~= "" then
    local old = redis.call("ZRANGEBYLEX", key, "[b", "(" .. ARGV[2], "LIMIT", 0, OLD_MAX)
    if #old > 0 then
        redis.call("ZREM", key, unpack(old))
    end
end

local last = 3 + tonumber(ARGV[3])
for first = 4, last, STEP do
    local pairs_of_step = {}
    for at = first, math.min(first + STEP - 1, last) do
        pairs_of_step[#pairs_of_step + 1] = 0
        pairs_of_step[#pairs_of_step + 1] = ARGV[at]
    end
    redis.call("ZADD", key, unpack(pairs_of_step))
end

for at = last + 1, #ARGV, 7 do
    local numbers = {}
    for place = 1, 5 do
        numbers[place] = tonumber(ARGV[at + 1 + place])
    end
    local prefix, of_task = ARGV[at], ARGV[at + 1]
    local before = redis.call("ZRANGEBYLEX", key, "[" .. prefix, "(" .. prefix .. "\255", "LIMIT", 0, 1)[1]
    if before then
        local text = string.sub(before, #prefix + 1)
        local place = 0
        for number in string.gmatch(text, "%d+") do
            place = place + 1
            if place < 5 then
                numbers[place] = numbers[place] + tonumber(number)
            elseif place == 5 then
                numbers[place] = math.max(numbers[place], tonumber(number))
            end
        end
        redis.call("ZREM", key, before, of_task .. text)
    end
    local text = string.format("%.0f,%.0f,%.0f,%.0f,%.0f", unpack(numbers))
    redis.call("ZADD", key, 0, prefix .. text, 0, of_task .. text)
end
return 1
