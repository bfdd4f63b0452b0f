-- Keep the first answer to a claimed key. KEYS: answer. ARGV: status, body, ttl_s.
redis.call('HSET', KEYS[1], 'status', ARGV[1], 'body', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 'ok'
