-- Takes over what the group gave out to others, or what lost its place among the claims: nobody has settled it for as
-- long as a claim lasts. ARGV: group, consumer, ms that a claim lasts, where to go on (0-0: begin).
-- Returns where to go on next time, and how many were taken over.
local group, consumer, lasts, from = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local found = redis.call('XAUTOCLAIM', stream, group, consumer, lasts, from, 'COUNT', 100, 'JUSTID')
local adopted = 0
for _, id in ipairs(found[2]) do
    if id and not redis.call('ZSCORE', claims, id) and not redis.call('ZSCORE', due, id) then
        -- Its claim has ended at once, and is counted as such when it is given out.
        redis.call('ZADD', claims, now, id)
        adopted = adopted + 1
    end
end
return {found[1], adopted}
