-- Takes messages off whose claims have not ended. ARGV: group, `delete` or ``, then id and claim of each.
-- Returns how many it were.
local group, delete = ARGV[1], ARGV[2]
local ids, off = {}, {}
for i = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local records, claimed = redis.call('HMGET', known, unpack(ids)), redis.call('ZMSCORE', claims, unpack(ids))
for i, id in ipairs(ids) do
    local number = tonumber(ARGV[2 * i + 2])
    if claimed[i] and unpacked(records[i]).claims == number then off[#off + 1] = id end
end
if #off > 0 then forget(off, group, delete) end
return #off
