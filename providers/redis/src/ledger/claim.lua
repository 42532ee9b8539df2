-- Gives messages out: first what comes back, then what is new. ARGV: group, consumer, most, ms that a claim lasts.
-- Returns: the server's time in ms, the messages as {id, fields, claims, attempts, faults, kills}, the ids of messages
-- that somebody deleted from the stream before they were handled.
local group, consumer, most, lasts = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local given, gone = {}, {}

local function give(id, found, record)
    redis.call('ZADD', claims, now + lasts, id)
    given[#given + 1] = {id, found, record.claims, record.attempts, record.faults, record.kills}
end

local function again(set, killed)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', set, '-inf', now, 'LIMIT', 0, most - #given)) do
        local found, record = fields(id), read(id)
        redis.call('ZREM', set, id)
        if found then
            record.claims, record.attempts = record.claims + 1, record.attempts + 1
            record.kills = record.kills + killed
            write(id, record)
            give(id, found, record)
        else
            forget(id, group)
            gone[#gone + 1] = id
        end
    end
end

-- A claim that came to its end without a settlement: a node died, or was cut off for longer than that.
again(claims, 1)
if #given < most then again(due, 0) end
if #given < most then
    local fresh = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', most - #given, 'STREAMS', stream, '>')
    local messages = fresh and fresh[1][2] or {}
    for _, message in ipairs(messages) do
        local id, found = message[1], message[2]
        -- What is out already comes again where the group was made anew.
        if not redis.call('ZSCORE', claims, id) and not redis.call('ZSCORE', due, id) then give(id, found, read(id)) end
    end
    if #messages > 0 then redis.call('HSET', known, 'last', messages[#messages][1]) end
end
return {now, given, gone}
