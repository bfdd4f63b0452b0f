-- Where a session is held. KEYS: session. Returns {owner, its URL}; {owner} when it is not alive, {} when there is none.
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner or owner == '' then return {} end
return {owner, redis.call('GET', 'cellar:instance:' .. owner) or nil}
