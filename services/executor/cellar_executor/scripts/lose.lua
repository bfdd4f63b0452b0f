-- The session's state could not be rebuilt: it is lost until somebody asks for a reset.
if redis.call('EXISTS', SESSION) == 1 then redis.call('HSET', SESSION, 'unrepeatable', 1) end
return 'ok'
