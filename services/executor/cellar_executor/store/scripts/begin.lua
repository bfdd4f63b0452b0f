-- Begin a run: accept its own cell, if it has one, and start the first pending cell, in one write.
-- ARGV: expires_at, run_id, head of the run, bound ('' = all there is), generation, max_pending, max_bytes,
-- 'atomic' | '', [cell_id, code].
-- Returns {'begun', bound, [index, cell_id, code]}; {'known'} when this run was begun before; {'existing', index} when
-- its own cell is no longer pending.
release_orphan()
if redis.call('HEXISTS', RUNS, ARGV[2]) == 1 then return {'known'} end
local bound = tonumber(ARGV[4])
if #ARGV > 8 then
  local indices, refusal = accept(9, tonumber(ARGV[6]), tonumber(ARGV[7]))
  if not indices then return {refusal} end
  if redis.call('HGET', CELL .. indices[1], 'status') ~= 'pending' then return {'existing', indices[1]} end
elseif redis.call('ZCARD', PENDING) == 0 then
  -- Runs of nothing are kept as well, and are not to grow without bound.
  if redis.call('HGET', SESSION, 'bytes') + #ARGV[3] > tonumber(ARGV[7]) then return {'log_full'} end
end
bound = bound or redis.call('HGET', SESSION, 'cells') - 1
redis.call('HINCRBY', SESSION, 'bytes', #ARGV[3])
redis.call('HSET', RUNS, ARGV[2], ARGV[3])
redis.call('HDEL', QUEUED, ARGV[2])
touch(ARGV[1])
return start_next({'begun', bound}, bound, ARGV[2], ARGV[5], ARGV[8] == 'atomic')
