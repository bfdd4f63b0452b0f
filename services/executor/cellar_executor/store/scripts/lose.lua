-- The session's state could not be rebuilt: it is lost until somebody asks for a reset.
redis.call('HSET', SESSION, 'unrepeatable', 1)
return 'ok'
