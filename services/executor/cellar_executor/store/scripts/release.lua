-- Give a session up whose kernel is closed: the next server that is asked about it takes it over at once.
redis.call('HSET', SESSION, 'owner', '')
return 'released'
