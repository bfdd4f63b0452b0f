-- Keep an API key under a name that is free, and change what its tenant's quota has of its own.
-- KEYS: keys, quotas. ARGV: name, key (JSON), tenant, changes of the quota (JSON). Returns 'added', or 'taken'.
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 'taken' end
local changes = cjson.decode(ARGV[4])
if next(changes) then
  local quota = cjson.decode(redis.call('HGET', KEYS[2], ARGV[3]) or '{}')
  for name, value in pairs(changes) do quota[name] = value end
  redis.call('HSET', KEYS[2], ARGV[3], cjson.encode(quota))
end
return 'added'
