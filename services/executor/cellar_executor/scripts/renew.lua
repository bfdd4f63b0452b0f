-- The session has a new kernel: one generation more. ARGV: expires_at, generation, 'reset' | 'replay'.
-- After a reset, cells of earlier generations are history: they are never replayed.
if redis.call('EXISTS', SESSION) == 0 then return 'missing' end
redis.call('HSET', SESSION, 'generation', ARGV[2])
if ARGV[3] == 'reset' then redis.call('HSET', SESSION, 'base', ARGV[2]) end
redis.call('HDEL', SESSION, 'lost')
touch(ARGV[1])
return 'renewed'
