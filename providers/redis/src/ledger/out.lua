-- What was given out and is not settled. Returns: how many that are, and how many of them cannot be given out yet.
local later = redis.call('ZCOUNT', claims, '(' .. now, '+inf') + redis.call('ZCOUNT', due, '(' .. now, '+inf')
return {redis.call('ZCARD', claims) + redis.call('ZCARD', due), later}
