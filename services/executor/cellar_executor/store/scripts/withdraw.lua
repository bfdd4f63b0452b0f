-- Take a pending cell out of the queue; it keeps its place in the log. ARGV: expires_at, cell_id.
local index = redis.call('HGET', IDS, ARGV[2])
if not index then return {'no_cell'} end
local status = redis.call('HGET', CELL .. index, 'status')
if status ~= 'pending' and status ~= 'withdrawn' then return {'not_pending'} end
redis.call('HSET', CELL .. index, 'status', 'withdrawn')
redis.call('ZREM', PENDING, index)
touch(ARGV[1])
return {'withdrawn', tonumber(index)}
