-- Write down a change of a file before the kernel makes it; whoever stages has the session's turn.
-- ARGV: expires_at, max_bytes, 'put' | 'delete', path, data. Returns {'staged', number}.
-- It belongs before the first cell that has not been started. What an earlier try left staged was never kept.
release_orphan()
if redis.call('HGET', SESSION, 'bytes') + #ARGV[4] + #ARGV[5] > tonumber(ARGV[2]) then return {'log_full'} end
local number = tonumber(redis.call('HGET', SESSION, 'files') or 0)
local before = redis.call('ZRANGE', PENDING, 0, 0)[1] or redis.call('HGET', SESSION, 'cells')
redis.call('DEL', FILE .. number)
redis.call('HSET', FILE .. number, 'kind', ARGV[3], 'path', ARGV[4], 'data', ARGV[5], 'before', before)
touch(ARGV[1])
return {'staged', number}
