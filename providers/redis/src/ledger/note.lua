-- Counts an attempt under a claim that goes on. ARGV: id, claim, fault or ``, bytes of a fault, faults that are kept.
local id, number = ARGV[1], ARGV[2]
local record = read(id)
if not stands(id, record, number) then return 0 end
note(record, ARGV[3], ARGV[4], ARGV[5])
record.attempts = record.attempts + 1
write(id, record)
return 1
