-- How the queue stands. KEYS[6]: the stream of dead letters. ARGV: group.
-- Returns: ms of the server's clock, how many are worked on, how many wait for another try, how many are new (-1: the
-- server does not count them), the oldest of these two as an id or ``, dead letters.
local last, lag = group_of(ARGV[1])
if not last then return redis.error_reply('NOGROUP there is no such group') end
local first = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)[1]
local soonest = redis.call('ZRANGE', due, 0, 999)
return {
    now, redis.call('ZCARD', claims), redis.call('ZCARD', due), first and tonumber(lag or -1) or 0,
    first and first[1] or '', redis.call('XLEN', KEYS[6]), soonest,
}
