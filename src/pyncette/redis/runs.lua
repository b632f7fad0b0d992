-- Reads attempts of one part of the run history; see pyncette.redis.history for the members.
-- KEYS: the sorted set of the part.
-- ARGV: the command of the order; the two ends of the range; the maximum number; "1" if the range
-- has only places, not the attempts themselves.
-- Returns the members with the attempts; the beginning of one that is missing.

local key = KEYS[1]
local found = redis.call(ARGV[1], key, ARGV[2], ARGV[3], "LIMIT", 0, ARGV[4])
if ARGV[5] == "1" then
    for at, member in ipairs(found) do
        local prefix = "a" .. string.sub(member, -16)
        local attempt = redis.call("ZRANGEBYLEX", key, "[" .. prefix, "+", "LIMIT", 0, 1)[1]
        if attempt and string.sub(attempt, 1, 17) == prefix then
            found[at] = attempt
        else
            found[at] = prefix
        end
    end
end
return found
