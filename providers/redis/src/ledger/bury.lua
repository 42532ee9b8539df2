-- Makes a dead letter, unless the claim has ended. KEYS[6]: the stream of dead letters. ARGV: group, id, claim, `delete`
-- or ``, fault or ``, bytes of a fault, faults that are kept, ms that dead letters are kept, bytes that they may hold, then
-- names and values that stand beside the message.
-- Returns whether the claim still stood, or -1 if there is no room.
local letters, group, id, number = KEYS[6], ARGV[1], ARGV[2], ARGV[3]
local record = read(id)
if not stands(id, record, number) then return 0 end

redis.call('XTRIM', letters, 'MINID', math.max(0, now - tonumber(ARGV[8])))
if (redis.call('MEMORY', 'USAGE', letters) or 0) > tonumber(ARGV[9]) then return -1 end
note(record, ARGV[5], ARGV[6], ARGV[7])
local letter = fields(id) or {}
for i = 10, #ARGV do letter[#letter + 1] = ARGV[i] end
local function add(name, value)
    letter[#letter + 1] = 'Trellis-Dead-' .. name
    letter[#letter + 1] = value
end
add('Attempts', record.attempts)
add('Kills', record.kills)
for _, text in ipairs(record.texts) do add('Fault', text) end
redis.call('XADD', letters, '*', unpack(letter))
forget({id}, group, ARGV[4])
return 1
