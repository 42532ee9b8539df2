-- What there is to give out. ARGV: group, most.
-- Returns: how many are due, ms until the next one is (-1: none), about how many are new, the last id given out.
local group, most = ARGV[1], tonumber(ARGV[2])
local last, lag = group_of(group)
if not last then return redis.error_reply('NOGROUP there is no such group') end

local next = -1
for _, set in ipairs({due, claims}) do
    local soonest = redis.call('ZRANGEBYSCORE', set, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    if soonest and (next < 0 or soonest - now < next) then next = math.max(1, soonest - now) end
end
return {due_now(), next, new_after(last, lag, most), last}
