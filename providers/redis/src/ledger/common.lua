-- What every script of the ledger begins with. A script is one step: all of it happens, or nothing.
--
-- KEYS[1]  the stream. Its group holds every message that is not settled as pending.
-- KEYS[2]  claims: a sorted set of what is worked on, id by the end of its claim, in ms of the server's clock
-- KEYS[3]  due: a sorted set of what waits for another try, id by when it may be given out
-- KEYS[4]  known: a hash of what is known of a message, once that is more than "it was given out for the first time"; and
--          the id of the last that was, as `last`
-- KEYS[5]  kept: a hash of copies of what waits for another try, since a publisher may trim the stream meanwhile
local stream, claims, due, known, kept = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- claims: how often it was given out, which names a claim; the rest is what the engine counts.
local function unpacked(packed)
    if packed then return cmsgpack.unpack(packed) end
    return {claims = 1, attempts = 1, faults = 0, kills = 0, texts = {}}
end

local function read(id)
    return unpacked(redis.call('HGET', known, id))
end

local function write(id, record)
    redis.call('HSET', known, id, cmsgpack.pack(record))
end

-- The fields of a message, wherever they are. One that was put back from the dead letters never was in the stream.
local function fields(id)
    local copy = redis.call('HGET', kept, id)
    if copy then return cmsgpack.unpack(copy) end
    if string.sub(id, 1, 1) == 'r' then return nil end
    local found = redis.call('XRANGE', stream, id, id)
    return found[1] and found[1][2]
end

local function wait(id, at)
    redis.call('ZREM', claims, id)
    redis.call('ZADD', due, at, id)
    if redis.call('HEXISTS', kept, id) == 0 then
        local found = fields(id)
        if found then redis.call('HSET', kept, id, cmsgpack.pack(found)) end
    end
end

-- All that is known of messages goes. What was put back from the dead letters is no entry of the stream.
local function forget(ids, group, delete)
    redis.call('ZREM', claims, unpack(ids))
    redis.call('ZREM', due, unpack(ids))
    redis.call('HDEL', known, unpack(ids))
    redis.call('HDEL', kept, unpack(ids))
    local entries = {}
    for _, id in ipairs(ids) do
        if string.sub(id, 1, 1) ~= 'r' then entries[#entries + 1] = id end
    end
    if #entries == 0 then return end
    redis.call('XACK', stream, group, unpack(entries))
    if delete == 'delete' then redis.call('XDEL', stream, unpack(entries)) end
end

-- Whether this claim still is the one that holds the message.
local function stands(id, record, number)
    return record.claims == tonumber(number) and redis.call('ZSCORE', claims, id)
end

-- One fault more; the newest texts are kept, each cut at its bound.
local function note(record, fault, bytes, count)
    if fault == '' then return end
    record.faults = record.faults + 1
    if #record.texts >= tonumber(count) then table.remove(record.texts, 1) end
    record.texts[#record.texts + 1] = string.sub(fault, 1, tonumber(bytes))
end

-- About how many are due.
local function due_now()
    return redis.call('ZCOUNT', due, '-inf', now) + redis.call('ZCOUNT', claims, '-inf', now)
end

-- What the group gave out last, and about how many messages it has not given out.
local function group_of(name)
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
        local info = {}
        for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
        if info['name'] == name then return info['last-delivered-id'], info['lag'] end
    end
end

-- About how many messages are new, where it is said what was given out last; `most` where the server cannot tell.
local function new_after(last, lag, most)
    if #redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1) == 0 then return 0 end
    return math.max(1, tonumber(lag or most))
end
