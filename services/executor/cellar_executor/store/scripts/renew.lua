-- The session has a new kernel: one generation more. ARGV: expires_at, generation, 'reset' | 'replay'.
-- After a reset, cells of earlier generations are history: they are never replayed, and no longer counted. Files are gone.
redis.call('HSET', SESSION, 'generation', ARGV[2])
if ARGV[3] == 'reset' then
  local bytes = 0
  for _, index in ipairs(redis.call('ZRANGE', PENDING, 0, -1)) do
    bytes = bytes + redis.call('HSTRLEN', CELL .. index, 'code')
  end
  for number = 0, tonumber(redis.call('HGET', SESSION, 'files') or 0) do
    redis.call('DEL', FILE .. number)
  end
  redis.call('HSET', SESSION, 'base', ARGV[2], 'files', 0, 'bytes', bytes)
end
redis.call('HDEL', SESSION, 'unrepeatable', 'lost')
touch(ARGV[1])
return 'renewed'
