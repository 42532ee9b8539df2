-- The keys of small entries that begin so. KEYS[1]: a sorted set of when entries end. ARGV: prefix, most.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local prefix, found = ARGV[1], {}
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
    if string.sub(key, 1, #prefix) == prefix then found[#found + 1] = key end
    if #found == tonumber(ARGV[2]) then break end
end
return found
