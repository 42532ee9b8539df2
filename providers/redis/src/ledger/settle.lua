-- Has a message wait for another try, unless the claim has ended. ARGV: id, claim, what, ms to wait, then by what:
--   back
--   retry, fault or ``, bytes of a fault, faults that are kept
-- Returns whether the claim still stood.
local id, number, what, after = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local record = read(id)
if not stands(id, record, number) then return 0 end

if what == 'back' then
    record.attempts = record.attempts - 1
    write(id, record)
    -- Without a wait before all others: it was at the front when it was pulled.
    wait(id, after > 0 and now + after or 0)
else
    note(record, ARGV[5], ARGV[6], ARGV[7])
    write(id, record)
    wait(id, now + after)
end
return 1
