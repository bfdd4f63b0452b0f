-- Take over a session that no live server owns: one epoch more, so that whoever held it is refused from now on.
-- Its kernel is dead, and a cell that was running in it is lost: whether it ran to its end is unknown.
-- Returns {'taken', epoch}, or {'moved'} while another server lives that owns it.
if redis.call('EXISTS', SESSION) == 0 then return {'missing'} end
local owner, config, unrepeatable = unpack(redis.call('HMGET', SESSION, 'owner', 'config', 'unrepeatable'))
if owner and owner ~= INSTANCE and redis.call('EXISTS', 'cellar:instance:' .. owner) == 1 then return {'moved'} end
local running = redis.call('HGET', SESSION, 'running')
if running and redis.call('HGET', CELL .. running, 'status') == 'running' then
  redis.call('HSET', CELL .. running, 'status', 'lost')
end
redis.call('HDEL', SESSION, 'running')
if unrepeatable or cjson.decode(config).recovery == 'fail' then redis.call('HSET', SESSION, 'lost', 1) end
redis.call('HSET', SESSION, 'owner', INSTANCE)
return {'taken', redis.call('HINCRBY', SESSION, 'epoch', 1)}
