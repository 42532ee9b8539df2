-- Gives messages out: first what comes back, then what is new. ARGV: group, consumer, most, ms that a claim lasts.
-- Returns: the server's time in ms, the messages as {id, fields, claims, attempts, faults, kills}, the ids of messages
-- that somebody deleted from the stream before they were handled, about how many are left where these are as many as asked for.
local group, consumer, most, lasts = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local given, gone = {}, {}

-- When each claim ends that is new, and its id: as ZADD takes them.
local held = {}

local function hold()
    if #held > 0 then redis.call('ZADD', claims, unpack(held)) end
    held = {}
end

local function give(id, found, record)
    held[#held + 1] = now + lasts
    held[#held + 1] = id
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
            forget({id}, group)
            gone[#gone + 1] = id
        end
    end
end

-- A claim that came to its end without a settlement: a node died, or was cut off for longer than that.
again(claims, 1)
if #given < most then again(due, 0) end
hold()
if #given < most then
    local fresh = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', most - #given, 'STREAMS', stream, '>')
    local messages = fresh and fresh[1][2] or {}
    local ids = {}
    for i, message in ipairs(messages) do ids[i] = message[1] end
    if #ids > 0 then
        local claimed, waits = redis.call('ZMSCORE', claims, unpack(ids)), redis.call('ZMSCORE', due, unpack(ids))
        local records = redis.call('HMGET', known, unpack(ids))
        for i, id in ipairs(ids) do
            -- What is out already comes again where the group was made anew.
            if not claimed[i] and not waits[i] then give(id, messages[i][2], unpacked(records[i])) end
        end
        redis.call('HSET', known, 'last', ids[#ids])
    end
end
hold()

local left = 0
if #given == most then
    local last, lag = group_of(group)
    left = due_now() + new_after(last, lag, most)
end
return {now, given, gone, left}
