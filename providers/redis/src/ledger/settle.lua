-- Carries out a settlement, unless the claim has ended. ARGV: group, id, claim, what, then by what:
--   off, `delete` or ``
--   back, ms to wait
--   retry, ms to wait, fault or ``, bytes of a fault, faults that are kept
-- Returns whether the claim still stood.
local group, id, number, what = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local record = read(id)
if not stands(id, record, number) then return 0 end

if what == 'off' then
    forget(id, group, ARGV[5])
elseif what == 'back' then
    record.attempts = record.attempts - 1
    write(id, record)
    -- Without a wait before all others: it was at the front when it was pulled.
    local after = tonumber(ARGV[5])
    wait(id, after > 0 and now + after or 0)
else
    note(record, ARGV[6], ARGV[7], ARGV[8])
    write(id, record)
    wait(id, now + tonumber(ARGV[5]))
end
return 1
