-- The session is in use. ARGV: expires_at.
if redis.call('EXISTS', SESSION) == 0 then return 'missing' end
touch(ARGV[1])
return 'ok'
