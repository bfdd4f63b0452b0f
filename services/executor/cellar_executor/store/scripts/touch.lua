-- The session is in use. ARGV: expires_at.
touch(ARGV[1])
return 'ok'
