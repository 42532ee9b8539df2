-- Decides on a dead letter. KEYS[6]: the stream of dead letters. ARGV: its id, the component whose it must be, `replay` or
-- `drop`. Returns its fields, or nothing where there is none. What is replayed is for this group alone, so it does not go
-- through the stream, and it goes before all that waits: of an ordered link it may be what the others wait for.
local letters, letter, component, fate = KEYS[6], ARGV[1], ARGV[2], ARGV[3]
local found = redis.call('XRANGE', letters, letter, letter)[1]
if not found then return false end
local message, whose = {}, nil
for i = 1, #found[2], 2 do
    local name, value = found[2][i], found[2][i + 1]
    if name == 'Trellis-Dead-Component' then whose = value end
    if string.sub(name, 1, 13) ~= 'Trellis-Dead-' then
        message[#message + 1] = name
        message[#message + 1] = value
    end
end
if whose ~= component then return false end
if fate == 'replay' then
    local id = 'r' .. now .. '-' .. letter
    redis.call('HSET', kept, id, cmsgpack.pack(message))
    write(id, {claims = 0, attempts = 0, faults = 0, kills = 0, texts = {}})
    redis.call('ZADD', due, 0, id)
end
redis.call('XDEL', letters, letter)
return found[2]
