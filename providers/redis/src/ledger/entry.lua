-- Reads one small entry. KEYS[1]: a hash of entries; KEYS[2]: a sorted set of when they end. ARGV: key.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0) <= now then return false end
return redis.call('HGET', KEYS[1], ARGV[1])
