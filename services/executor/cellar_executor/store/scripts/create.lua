-- Record a session whose kernel is ready. ARGV: session_id, max_sessions of its tenant, created_at, expires_at, config, origin.
-- A server that says it again, for a reply lost on the way, finds the session made.
if redis.call('EXISTS', SESSION) == 1 then
  local origin, owner, epoch = unpack(redis.call('HMGET', SESSION, 'origin', 'owner', 'epoch'))
  if origin == ARGV[6] and owner == INSTANCE and epoch == '1' then return 'created' end
  return 'exists'
end
if redis.call('EXISTS', TOMBSTONE) == 1 then return 'exists' end
if redis.call('ZCARD', LISTING) >= tonumber(ARGV[2]) then return 'full' end
redis.call('HSET', SESSION, 'owner', INSTANCE, 'epoch', 1, 'generation', 1, 'base', 1, 'cells', 0, 'files', 0, 'bytes', 0,
  'created_at', ARGV[3], 'expires_at', ARGV[4], 'config', ARGV[5], 'origin', ARGV[6])
redis.call('ZADD', SESSIONS, ARGV[4], REF)
redis.call('ZADD', LISTING, 0, ARGV[1])
return 'created'
