-- What there is to give out. ARGV: group, most.
-- Returns: how many are due, ms until the next one is (-1: none), about how many are new, the last id given out.
local group, most = ARGV[1], tonumber(ARGV[2])
local last, lag = group_of(group)
if not last then return redis.error_reply('NOGROUP there is no such group') end

local ready = redis.call('ZCOUNT', due, '-inf', now) + redis.call('ZCOUNT', claims, '-inf', now)
local next = -1
for _, set in ipairs({due, claims}) do
    local soonest = redis.call('ZRANGEBYSCORE', set, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    if soonest and (next < 0 or soonest - now < next) then next = math.max(1, soonest - now) end
end
local fresh = 0
if #redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1) > 0 then fresh = math.max(1, tonumber(lag or most)) end
return {ready, next, fresh, last}
