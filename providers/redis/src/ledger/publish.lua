-- Adds a message once. KEYS[1]: the stream; KEYS[2]: the mark of its id. ARGV: ms that the mark is kept, then fields.
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
return 1
