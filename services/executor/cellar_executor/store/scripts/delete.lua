-- Delete a session and leave a tombstone.
-- ARGV: session_id, tombstone_ttl_s ('' = for ever), expired_by ('' = in any case).
if ARGV[3] ~= '' and tonumber(redis.call('HGET', SESSION, 'expires_at')) > tonumber(ARGV[3]) then return 'in use' end
for index = 0, tonumber(redis.call('HGET', SESSION, 'cells')) - 1 do
  redis.call('DEL', CELL .. index)
end
for number = 0, tonumber(redis.call('HGET', SESSION, 'files') or 0) do
  redis.call('DEL', FILE .. number)
end
redis.call('DEL', SESSION, IDS, PENDING, RUNS, QUEUED)
redis.call('ZREM', SESSIONS, REF)
redis.call('ZREM', LISTING, ARGV[1])
redis.call('SET', TOMBSTONE, 1)
if ARGV[2] ~= '' then redis.call('EXPIRE', TOMBSTONE, ARGV[2]) end
return 'deleted'
