-- Makes the group, and the stream where that is asked for. ARGV: group, `make` or `` for the stream, `on` if messages of this
-- stream were given out before to who asks: then it goes on behind the last of them, and else from the oldest on.
-- Returns whether it was made anew so.
local group, make, on = ARGV[1], ARGV[2], ARGV[3]

local function numbers(id)
    local ms, sequence = string.match(id, '^(%d+)-(%d+)$')
    return tonumber(ms), tonumber(sequence)
end

-- The last id of a stream that is there: one that was made anew with ids of its own may not have come so far.
local function reaches(id)
    if redis.call('EXISTS', stream) == 0 then return false end
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
            local ms, sequence = numbers(info[i + 1])
            local its_ms, its_sequence = numbers(id)
            return ms > its_ms or ms == its_ms and sequence >= its_sequence
        end
    end
end

local last = on == 'on' and redis.call('HGET', known, 'last')
local from = last and reaches(last) and last or '0'
local create = {'XGROUP', 'CREATE', stream, group, from}
if make == 'make' then create[#create + 1] = 'MKSTREAM' end
local made = redis.pcall(unpack(create))
if type(made) == 'table' and made.err then
    -- Another node was faster, or it was there all the time.
    if string.find(made.err, 'BUSYGROUP', 1, true) then return 0 end
    return made
end
return from ~= '0' and 1 or 0
