-- Keep the first answer to a claimed key. KEYS: answer, lease. ARGV: instance, status, body, ttl_s.
-- 'moved': another server has claimed the key meanwhile, since this one was gone for too long.
if redis.call('HGET', KEYS[1], 'instance') ~= ARGV[1] then return 'moved' end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'body', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 'ok'
