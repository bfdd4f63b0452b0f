-- The session's kernel is gone, and its state cannot be rebuilt: it is lost until somebody asks for a reset.
redis.call('HSET', SESSION, 'unrepeatable', 1, 'lost', 1)
return 'ok'
