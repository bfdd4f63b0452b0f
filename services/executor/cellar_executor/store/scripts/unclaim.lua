-- The request with this key was not answered. KEYS: answer, lease. ARGV: instance, 'forget' (it left nothing behind, and may be
-- tried again as new) | 'leave' (whoever gets it next finds what it left).
if redis.call('HGET', KEYS[1], 'instance') ~= ARGV[1] then return 'ok' end
if ARGV[2] == 'forget' then redis.call('DEL', KEYS[1]) else redis.call('HSET', KEYS[1], 'instance', '') end
return 'ok'
