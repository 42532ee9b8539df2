-- Makes a claim last from now on. ARGV: id, claim, ms that a claim lasts. Returns whether it still stood.
local id, number, lasts = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not stands(id, read(id), number) then return 0 end
redis.call('ZADD', claims, now + lasts, id)
return 1
