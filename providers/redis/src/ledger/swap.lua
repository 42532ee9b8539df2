-- One small entry, if it still is what it was. KEYS[1]: a hash of entries; KEYS[2]: a sorted set of when they end.
-- ARGV: key, `is` or `none`, what it was, `set` or `none`, what it becomes, ms that it is kept. Returns whether it was so.
local entries, ends, key = KEYS[1], KEYS[2], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, over in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('HDEL', entries, over)
    redis.call('ZREM', ends, over)
end
local stands = (tonumber(redis.call('ZSCORE', ends, key) or 0)) > now
local is = stands and redis.call('HGET', entries, key)
if ARGV[2] == 'is' and is ~= ARGV[3] or ARGV[2] == 'none' and is then return 0 end
if ARGV[4] == 'set' then
    redis.call('HSET', entries, key, ARGV[5])
    redis.call('ZADD', ends, now + tonumber(ARGV[6]), key)
else
    redis.call('HDEL', entries, key)
    redis.call('ZREM', ends, key)
end
return 1
